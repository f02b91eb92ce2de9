"""One run the way the paper's authors did theirs: a process, a Dataset of PIL images and a DataLoader.

A stand-in for `train.py` of gbaydin/hypergradient-descent, written anew, to measure other ways of training
against. As there: torchvision's MNIST read image by image through ToTensor and Normalize, minibatches of 128,
shuffled, no worker processes (their script passes its `workers` option to CIFAR-10's loaders alone, so
MNIST's have the default of none), loss and alpha read after every iteration, validation on the 10,000 test
images after every epoch through a DataLoader of the same kind. Kinder than there: torch.optim and hdlib's
optimisers, validation without gradients, and no file is written.

    python benchmarks/authors_way.py --model logreg --method adam_hd --alpha0 1e-3 --beta 1e-7 --epochs 1

prints one line of JSON. `iterations_per_second` leaves validation and set-up out; `process_seconds` is what
the whole process took, imports included, and what a set of runs costs one after the other.
"""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

from hdlib import SGDHD, AdamHD  # noqa: E402
from hdlib.tasks import build_model  # noqa: E402

BATCH_SIZE, WEIGHT_DECAY, MOMENTUM = 128, 1e-4, 0.9
METHODS = ("sgd", "sgd_hd", "sgdn", "sgdn_hd", "adam", "adam_hd")


def loader(folder: str, train: bool) -> DataLoader:
    """Return minibatches of MNIST, decoded and normalised image by image as they are asked for."""
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    images = datasets.MNIST(folder, train=train, download=False, transform=steps)
    return DataLoader(images, batch_size=BATCH_SIZE, shuffle=True)


def make_optimizer(method: str, params, alpha0: float, beta: float) -> torch.optim.Optimizer:
    """Return torch.optim's optimiser for a baseline, hdlib's for a hypergradient method."""
    options = {"lr": alpha0, "weight_decay": WEIGHT_DECAY}
    if method.startswith("sgdn"):
        options |= {"momentum": MOMENTUM, "nesterov": True}
    if method.endswith("_hd"):
        return (AdamHD if method == "adam_hd" else SGDHD)(params, hypergrad_lr=beta, **options)
    return (torch.optim.Adam if method == "adam" else torch.optim.SGD)(params, **options)


@torch.no_grad()
def validate(model: torch.nn.Module, batches: DataLoader) -> float:
    """Return the mean cross-entropy."""
    model.eval()
    total = sum(F.cross_entropy(model(x.flatten(1)), y, reduction="sum").item() for x, y in batches)
    model.train()
    return total / len(batches.dataset)


def run(args: argparse.Namespace) -> dict:
    """Train, and return what came of it and how long it took."""
    torch.manual_seed(args.seed)
    training, validation = loader(args.data, True), loader(args.data, False)
    model = build_model(args.model, 784, 10, args.seed)
    optimizer = make_optimizer(args.method, model.parameters(), args.alpha0, args.beta)
    cap = args.iterations_cap or args.epochs * len(training)
    history, valid_losses = [], []
    seconds = validation_seconds = 0.0
    for _ in range(args.epochs):
        started = time.perf_counter()
        for x, y in training:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.flatten(1)), y)
            loss.backward()
            optimizer.step()
            history.append((loss.item(), float(optimizer.param_groups[0]["lr"])))
            if len(history) >= cap:
                break
        trained = time.perf_counter()
        valid_losses.append(validate(model, validation))
        seconds += trained - started
        validation_seconds += time.perf_counter() - trained
        if len(history) >= cap:
            break
    return {
        "iterations": len(history),
        "seconds": round(seconds, 3),
        "iterations_per_second": round(len(history) / seconds, 2),
        "validations": len(valid_losses),
        "validation_seconds": round(validation_seconds, 3),
        "process_seconds": round(time.perf_counter() - STARTED, 3),
        "loss": history[-1][0],
        "alpha": history[-1][1],
        "valid_loss": valid_losses[-1],
        **{name: getattr(args, name) for name in ("model", "method", "alpha0", "beta", "epochs", "seed")},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("logreg", "mlp"), default="logreg")
    parser.add_argument("--method", choices=METHODS, default="adam")
    parser.add_argument("--alpha0", type=float, default=1e-3, help="learning rate to start from")
    parser.add_argument("--beta", type=float, default=0.0, help="hypergradient learning rate of the _hd methods")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations-cap", type=int, default=0, help="stop after so many iterations; 0: do not")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0: as torch chooses")
    parser.add_argument("--data", default=os.environ.get("HDLIB_DATA") or "data", help="folder that holds MNIST/raw")
    args = parser.parse_args()
    if args.beta and not args.method.endswith("_hd"):
        parser.error(f"--beta is {args.beta}, but {args.method} does not adapt its learning rate: leave it out.")
    if args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}: it must be at least 1.")
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        print(json.dumps(run(args)))
    except RuntimeError as error:
        if "Dataset not found" not in str(error):
            raise
        sys.exit(f"MNIST is not in {args.data!r}: give --data, or set HDLIB_DATA to, a folder that holds MNIST/raw.")


if __name__ == "__main__":
    main()
