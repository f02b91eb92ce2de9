"""Two real processes over gloo: DDP, FSDP2 and DTensors follow one process, with one alpha on every rank."""

import copy
import functools

import pytest
import torch
from torch import nn

from hdlib import SGDHD, AdamHD, AdamWHD

dist = pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

METHODS = {
    "sgd": functools.partial(SGDHD, lr=0.05, hypergrad_lr=1e-3),
    "sgd multiplicative": functools.partial(SGDHD, lr=0.05, hypergrad_lr=0.05, rule="multiplicative"),
    "nesterov fused": functools.partial(SGDHD, lr=0.01, momentum=0.9, nesterov=True, hypergrad_lr=1e-4, fused=True),
    "adam": functools.partial(AdamHD, lr=0.01, hypergrad_lr=1e-4),
    "adam fused": functools.partial(AdamHD, lr=0.01, hypergrad_lr=1e-4, fused=True),
    "adam foreach": functools.partial(AdamHD, lr=0.01, hypergrad_lr=1e-4, foreach=True, amsgrad=True),
    "adamw": functools.partial(AdamWHD, lr=0.01, hypergrad_lr=1e-4, weight_decay=0.1),
    "adamw multiplicative": functools.partial(AdamWHD, lr=0.01, hypergrad_lr=0.05, rule="multiplicative"),
    "nesterov automatic": functools.partial(SGDHD, lr=9.0, momentum=0.9, nesterov=True, hypergrad_lr="auto"),
    "adamw automatic": functools.partial(AdamWHD, lr=1.0, hypergrad_lr="auto", weight_decay=0.1),
}
STEPS = 6
WAYS = ["ddp", "fsdp", "dtensor"]


def model():
    """A network whose tensors do not all divide by two: rows of 7 and a bias of 3."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def minibatch(t):
    """Return the 8 inputs and targets of step t; a process takes every second one."""
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return x, torch.stack([x[:, 0], x[:, 1] * x[:, 2], x[:, 3].sin()], 1)


def steps(net, optimizer, rank, world, alphas, start=0):
    """Train on this process's share of the minibatches."""
    for t in range(start, start + STEPS):
        x, y = (part[rank::world] for part in minibatch(t))
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        alphas.append(float(optimizer.param_groups[0]["lr"]))


def whole(net):
    """Return all parameters of a network whose tensors may be sharded."""
    tensors = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in tensors])


def distribute(net, way, rank):
    """Return the network as DDP, as FSDP2 or with its tensors sharded over different dimensions."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if way == "ddp":
        return nn.parallel.DistributedDataParallel(net)
    mesh = init_device_mesh("cpu", (2,))
    if way == "fsdp":
        fully_shard(net[0], mesh=mesh)
        return fully_shard(net, mesh=mesh)
    how = [[Shard(0)], [Replicate()], [Shard(1)], [Shard(0)]]
    for (name, p), placements in zip(list(net.named_parameters()), how, strict=True):
        layer, attribute = net[int(name.split(".")[0])], name.split(".")[1]
        setattr(layer, attribute, nn.Parameter(distribute_tensor(p.detach(), mesh, placements)))
    return net


def dtensor_steps(net, optimizer, alphas):
    """Give DTensors the whole minibatch's gradients, computed on a whole copy, and step."""
    from torch.distributed.tensor import distribute_tensor

    for t in range(STEPS):
        copy_ = model()
        with torch.no_grad():
            for p, q in zip(copy_.parameters(), net.parameters(), strict=True):
                p.copy_(q.full_tensor())
        nn.functional.mse_loss(copy_(minibatch(t)[0]), minibatch(t)[1]).backward()
        for p, q in zip(net.parameters(), copy_.parameters(), strict=True):
            p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements)
        optimizer.step()
        alphas.append(float(optimizer.param_groups[0]["lr"]))


def work(rank, folder):
    """What each of the two processes does: every method in every way, its outcome saved."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    outcomes = {}
    for way in WAYS:
        for name, make in METHODS.items():
            net = distribute(model(), way, rank)
            optimizer = make(net.parameters())
            alphas = []
            if way == "dtensor":
                dtensor_steps(net, optimizer, alphas)
            else:
                steps(net, optimizer, rank, 2, alphas)
            outcomes[way, name] = (torch.tensor(alphas, dtype=torch.float64), whole(net))
    outcomes["checkpoint"] = checkpoint(rank)
    torch.save(outcomes, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def checkpoint(rank):
    """Stop FSDP2 in the middle and go on from the whole state of torch's distributed checkpoint API."""
    from torch.distributed.checkpoint import state_dict as dcp

    options = dcp.StateDictOptions(full_state_dict=True)
    net = distribute(model(), "fsdp", rank)
    optimizer = METHODS["adam"](net.parameters())
    alphas = []
    steps(net, optimizer, rank, 2, alphas)
    saved = copy.deepcopy(dcp.get_optimizer_state_dict(net, optimizer, options=options))
    again = METHODS["adam"](net.parameters())
    again.zero_grad()
    dcp.set_optimizer_state_dict(net, again, saved, options=options)
    steps(net, again, rank, 2, alphas, start=STEPS)
    return torch.tensor(alphas, dtype=torch.float64), whole(net)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The outcomes of two processes."""
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def alone(name, count=1):
    """Return what one process does with whole minibatches."""
    net = model()
    optimizer = METHODS[name](net.parameters())
    alphas = []
    for i in range(count):
        steps(net, optimizer, 0, 1, alphas, start=i * STEPS)
    return torch.tensor(alphas, dtype=torch.float64), whole(net)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_follow_one(ranks, way, name):
    expected = alone(name)
    for outcome in ranks:
        torch.testing.assert_close(outcome[way, name], expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(ranks[0][way, name][0], ranks[1][way, name][0])  # alpha, to the last digit
    assert abs(expected[0][-1] / expected[0][0] - 1) > 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beta", [0.0, 1e-4, "auto"])
@pytest.mark.parametrize(
    "values", [{}, {"capturable": True}, {"lr": torch.tensor(0.01)}], ids=["", "capturable", "tensor"]
)
@pytest.mark.parametrize("cls", [functools.partial(SGDHD, momentum=0.9), AdamHD, AdamWHD], ids=["sgd", "adam", "adamw"])
def test_a_run_resumes_from_a_distributed_checkpoint_on_disk(cls, values, beta, tmp_path):
    """It is read into the state of a new optimiser, entry by entry; one tensor had no gradient in the last step."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def start():
        net = model()
        return net, cls(net.parameters(), **{"lr": 0.01, "hypergrad_lr": beta} | values)

    net, optimizer = start()
    steps(net, optimizer, 0, 1, [])
    net[0].bias.grad = None
    optimizer.step()
    dcp.save(dict(zip(("net", "optimizer"), get_state_dict(net, optimizer), strict=True)), checkpoint_id=tmp_path)
    again, resumed = start()
    saved = dict(zip(("net", "optimizer"), get_state_dict(again, resumed), strict=True))
    dcp.load(saved, checkpoint_id=tmp_path)
    set_state_dict(again, resumed, model_state_dict=saved["net"], optim_state_dict=saved["optimizer"])
    outcomes = []
    for some, its in ((net, optimizer), (again, resumed)):
        alphas = []
        steps(some, its, 0, 1, alphas, start=STEPS)
        outcomes.append((alphas, its.param_groups[0]["hypergrad"]))
        assert (beta == 0.0) == (alphas[0] == alphas[-1])
    assert outcomes[0] == outcomes[1]
    assert torch.equal(whole(net), whole(again))


def test_a_sharded_run_resumes_from_a_distributed_checkpoint(ranks):
    expected = alone("adam", 2)
    for outcome in ranks:
        torch.testing.assert_close(outcome["checkpoint"], expected, rtol=1e-10, atol=1e-12)
