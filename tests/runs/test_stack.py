"""A stack trains each of its runs as the serial trainer would, at a cost that follows the work that is left."""

import itertools
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn import functional as F

from hdlib.optim.control import Control
from hdlib.runs import RunSpec, grid, train
from hdlib.runs.stack import EVALUATE, Stack, bytes_per_run, cross_entropy, per_run, train_stack, update
from hdlib.runs.sweep import IMAGE_BYTES, plan
from hdlib.runs.train import minibatches
from hdlib.tasks import build_model, load_data

ALPHAS = [1e-1, 1e-3]
SIZES = (64, 10)  # of the digits
NARROW = {"logreg": {}, "mlp": {"width": 20}}


def mixed(model="logreg", **fields):
    """Every method, rule and decay; two learning rates, betas, momenta and seeds among them."""
    common = dict(task="digits", model=model) | NARROW[model] | fields
    return [
        *grid(method=["sgd", "sgdn", "adam"], alpha0=0.01, **common),
        *grid(method="adam", decay=["inv_sqrt", "cosine"], alpha0=0.1, **common),
        *grid(method="sgd_hd", beta=[1e-3, 1e-4], alpha0=ALPHAS, seeds=2, **common),
        *grid(method="sgdn_hd", beta=1e-4, momentum=[0.5, 0.9], alpha0=1e-3, **common),
        *grid(method="adam_hd", beta=1e-5, alpha0=ALPHAS, **common),
        *grid(method=["sgd_hd", "sgdn_hd"], beta="auto", decay=["cosine", "inv_sqrt"], alpha0=[0.3, 1e-3], **common),
        *grid(method=["sgd_hd", "sgdn_hd", "adam_hd"], rule="multiplicative", beta=0.02, alpha0=1e-3, **common),
    ]


def largest_difference(one, other):
    columns = ["loss", "alpha", "hypergrad"]
    assert (one.spec, one.outcome, one.iterations) == (other.spec, other.outcome, other.iterations)
    np.testing.assert_array_equal(one.trace["iteration"], other.trace["iteration"])
    assert len(one.epochs) == len(other.epochs)
    epochs = np.abs(one.epochs.to_numpy() - other.epochs.to_numpy())
    scale = other.trace[columns].abs().clip(lower=1)
    return max(np.nanmax(epochs), ((one.trace[columns] - other.trace[columns]).abs() / scale).max(axis=None))


@pytest.mark.parametrize("model", ["logreg", "mlp"])
def test_a_stacked_run_is_the_serial_run_to_rounding(model):
    specs = mixed(model=model, precision="float64", epochs=20, max_iterations=200)
    for record in train_stack(specs):
        assert largest_difference(record, train(record.spec)) < 1e-9, record.spec


def test_a_stacked_curve_in_float32_is_the_serial_one_to_plotting_accuracy():
    specs = mixed(model="mlp", epochs=5)
    for record in train_stack(specs):
        serial = train(record.spec)
        np.testing.assert_allclose(record.trace["loss"], serial.trace["loss"], rtol=5e-3, atol=1e-4)
        np.testing.assert_allclose(record.epochs["valid_loss"], serial.epochs["valid_loss"], rtol=5e-3)


def test_the_compiled_rules_are_the_rules():
    """One family of each kind, at two sizes of the leading axis; a compiled step is compared with a plain one."""
    compiled = torch.compile(update, fullgraph=True), torch.compile(cross_entropy, fullgraph=True)
    for k, states in ((3, 3), (2, 3)):
        g = torch.Generator().manual_seed(k)
        new = lambda *shape, g=g: torch.rand(shape, generator=g, dtype=torch.float64)  # noqa: E731
        tensors = [[new(k, 10, 16)], [new(k, 10, 16)], [[new(k, 10, 16)] for _ in range(states)]]
        vectors = [new(k), new(k) * 1e-3, new(k), torch.zeros(k, dtype=torch.float64)]
        memory = {"slope": torch.zeros(k, dtype=torch.float64)}
        arguments = [*tensors, *vectors, memory, *map(torch.tensor, (3.0, 1e-8, 1.5))]
        twin = torch.utils._pytree.tree_map(torch.clone, arguments)
        options = dict(name="adam", momentum=0.0, weight_decay=1e-4, control=Control(), adapts=True)
        update(*arguments, **options)
        compiled[0](*twin, **options)
        torch.testing.assert_close(twin, arguments, rtol=1e-12, atol=1e-14)
        assert (arguments[6] != 0).all()  # there was a hypergradient
        logits, loss = new(k, 10, 8), new(k)
        onehot, weight = torch.eye(10, 8, dtype=torch.float64), new(8)
        twins = logits.clone(), loss.clone()
        cross_entropy(logits, onehot, weight, loss)
        compiled[1](twins[0], onehot, weight, twins[1])
        torch.testing.assert_close(twins, (logits, loss), rtol=1e-12, atol=1e-14)


def test_the_compiler_is_imported_only_to_compile(monkeypatch):
    """That takes longer than a small stack takes to train."""
    monkeypatch.setattr(torch._dynamo, "mark_dynamic", lambda *_: pytest.fail("the compiler was asked for"))
    assert len(train_stack(grid(task="digits", method="sgd", alpha0=ALPHAS, epochs=1))) == 2


def test_hand_written_gradients_are_autograds():
    [spec] = grid(task="digits", model="mlp", depth=3, width=7, method="sgd", alpha0=0.1, epochs=1, precision="float64")
    stack = Stack([spec, spec.with_(alpha0=0.2)], "cpu", False)
    [cohort] = stack.cohorts
    cohort.shuffle(1)
    cohort.load(0, 1)
    theta = [layer.clone().requires_grad_() for layer in cohort.theta]
    cohort.step(stack)
    x = cohort.x[cohort.chunk_order[0]].T
    for i, layer in enumerate(theta):
        x = layer @ (x if i == 0 else torch.cat([x.relu(), x.new_ones(2, 1, 128), x.new_zeros(2, 8, 128)], 1))
    labels = stack.data.train_y[cohort.chunk_order[0]].expand(2, -1)
    loss = torch.nn.functional.cross_entropy(x, labels, reduction="none").mean(1).sum()
    for mine, true in zip(cohort.grad, torch.autograd.grad(loss, theta), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-15)


def test_a_run_that_has_ended_leaves_and_disturbs_nobody():
    """Divergence, a target and a short run beside a long one: work follows what is left."""
    long = RunSpec(task="digits", model="mlp", width=20, method="sgd", alpha0=0.01, epochs=40, precision="float64")
    ends = [
        long.with_(method="adam_hd", beta=1e6),
        long.with_(method="sgdn", alpha0=0.1, target_loss=1.0),
        long.with_(epochs=2),
        long.with_(max_iterations=70),
    ]
    steps, told = [], []
    records = train_stack([long, *ends], tick=steps.append, emit=told.append)
    assert [r.outcome for r in records] == ["finished", "diverged", "reached", "finished", "finished"]
    assert records[0].iterations == 480 and records[3].iterations == 24 and records[4].iterations == 70
    assert largest_difference(records[0], train(long)) < 1e-9
    spent = sum(r.iterations for r in records)
    assert spent <= sum(steps) <= spent + 64 * len(ends)
    assert len(told) == len(steps)  # each is told of when it ended, and at other times that none has
    told = [ended for ended in told if ended]
    assert len(told) >= 3 and told[-1][-1].spec == long
    losses = records[2].trace["loss"]
    assert losses.iloc[-1] <= 1.0 < losses.iloc[:-1].min()


def test_what_a_rule_remembers_stays_with_its_run_when_others_leave():
    common = dict(task="digits", method="sgd_hd", beta="auto", precision="float64")
    specs = [RunSpec(alpha0=1e-4, epochs=1, **common)]
    specs += [RunSpec(alpha0=rate, epochs=8, **common) for rate in (1e-2, 1e-1)]
    for record in train_stack(specs):
        assert largest_difference(record, train(record.spec)) < 1e-9, record.spec


@pytest.mark.parametrize("first", [dict(method="sgd"), dict(method="sgd_hd", beta=1e-3)])
def test_a_run_adapts_whichever_of_its_family_comes_first(first):
    """The runs of a family are ordered by alpha_0: it adapts if any of them does."""
    other = dict(method="sgd_hd", beta=1e-3) if first["method"] == "sgd" else dict(method="sgd")
    common = dict(task="digits", epochs=1, precision="float64")
    for record in train_stack([RunSpec(alpha0=1e-3, **first, **common), RunSpec(alpha0=1e-2, **other, **common)]):
        assert largest_difference(record, train(record.spec)) < 1e-9, record.spec


def test_a_rate_that_is_fixed_meets_no_hypergradient_that_its_neighbour_has():
    """Beside a run that adapts an h beyond the numbers is computed, too, of a fixed rate that is absurdly large."""
    common = dict(task="digits", epochs=2)
    fixed = RunSpec(method="sgd", alpha0=1e25, weight_decay=1e-4, **common)
    [stacked, _] = train_stack([fixed, RunSpec(method="sgd_hd", alpha0=1e-3, beta=1e-3, **common)])
    alone = train(fixed)
    assert (stacked.outcome, stacked.iterations) == (alone.outcome, alone.iterations)
    assert set(stacked.trace["alpha"]) == set(alone.trace["alpha"]) == {1e25}


def test_a_first_step_is_limited_by_the_automatic_rule_where_it_adapts_alone():
    common = dict(task="digits", method="sgd_hd", rule="auto", alpha0=10.0, epochs=1, precision="float64")
    for record in train_stack([RunSpec(beta=beta, **common) for beta in (0.0, 1.0)]):
        assert largest_difference(record, train(record.spec)) < 1e-9, record.spec


def test_a_short_run_in_a_large_stack_is_dead_weight_for_a_while_and_no_more():
    long = grid(task="digits", method="sgd", alpha0=list(np.linspace(0.01, 0.1, 20)), epochs=8)
    records = train_stack([*long, long[0].with_(max_iterations=7)])
    assert [r.iterations for r in records] == [96] * 20 + [7]


@pytest.mark.parametrize("of", ["smoothed", "epoch"])
def test_other_targets_are_reached_when_the_curve_says_so(of):
    spec = RunSpec(task="digits", method="sgd", alpha0=0.02, epochs=60, target_loss=0.4, target_of=of)
    data = load_data("digits")
    model = build_model("logreg", data.features, data.classes, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, weight_decay=1e-4)
    losses, watched = [], []
    for epoch in range(1, 61):
        for batch in minibatches(spec, epoch, len(data.train_y), "cpu"):
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            watched.append(np.mean(losses[-100:]) if of == "smoothed" and len(losses) >= 100 else np.inf)
        if of == "epoch":
            watched[-1] = F.cross_entropy(model(data.train_x), data.train_y).item()
    expected = int(np.flatnonzero(np.array(watched) <= 0.4)[0]) + 1
    for record in (train(spec), *train_stack([spec])):
        assert (record.outcome, record.iterations) == ("reached", expected)


def test_a_trace_has_the_iteration_with_which_a_run_ended():
    common = dict(task="digits", method="sgd", alpha0=0.02, epochs=60, early=1)
    spec = RunSpec(target_loss=0.4, target_of="smoothed", **common)
    for record in (train(spec), *train_stack([spec])):
        assert record.outcome == "reached" and record.iterations == record.trace["iteration"].iloc[-1]
        assert record.iterations not in set(train(RunSpec(**common)).trace["iteration"])  # by chance


def test_a_mean_of_a_hundred_minibatches_is_one_of_no_fewer():
    spec = RunSpec(task="digits", method="sgd", alpha0=0.02, epochs=60, target_loss=9.0, target_of="smoothed")
    assert [record.iterations for record in (train(spec), *train_stack([spec]))] == [100, 100]


def test_a_step_waits_for_no_device():
    """On a fake GPU, whatever asks for a tensor's value fails; a step must not."""
    stack = Stack(mixed(model="mlp", epochs=1), "cpu", False)
    cohort = stack.cohorts[0]
    cohort.shuffle(1)
    cohort.load(0, 12)
    with FakeTensorMode(allow_non_fake_inputs=False):
        fake = lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")  # noqa: E731
        for owner, names in (
            (
                cohort,
                "x theta grad state alpha beta exponent angle decay hypergrad memory loss chunk_order chunk_weight",
            ),
            (stack, "onehot t floor scale row"),
        ):
            owner.device = "cuda"
            for name in names.split():
                setattr(owner, name, torch.utils._pytree.tree_map(fake, getattr(owner, name)))
        cohort._allocate(torch.float32)
        cohort.step(stack)
        assert cohort.theta[0].device.type == "cuda"
        with pytest.raises(DataDependentOutputException):  # so the step would have failed, had it looked
            float(cohort.alpha[0])


def test_a_capture_meets_nothing_that_was_not_called_before(monkeypatch):
    """Compiling a function that is new is not possible within a capture."""
    called, captured, executed = set(), [], set()

    class Graph:
        def replay(self):
            if self in executed:
                stack._step()
            executed.add(self)  # by its capture, here

    class Capture:
        def __init__(self, graph, stream):
            captured.append(graph)

        def __enter__(self):
            self.before = set(called)

        def __exit__(self, *_):
            assert called == self.before

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    specs = [*mixed(epochs=3), *mixed(epochs=1)[:4]]
    specs += grid(task="digits", method=["sgd_hd", "adam_hd"], beta="auto", alpha0=ALPHAS, epochs=3)
    stack = Stack(specs, "cpu", False)
    stack.captures = True

    def update_and_note(theta, *rest, **options):
        called.add((len(theta[0]), *map(str, options.values())))
        update(theta, *rest, **options)

    stack.functions.update = update_and_note
    records = {record.spec: record for record in trained(stack)}
    assert len(captured) > 1  # runs ended, and the rest was captured anew
    for record in train_stack(specs):
        pd.testing.assert_frame_equal(records[record.spec].trace, record.trace)


def trained(stack):
    """Train a stack to its end and return its records."""
    records = []
    while stack.cohorts:
        records += stack.advance()[1]
    return records


def test_a_step_that_cannot_be_captured_is_launched_by_itself(monkeypatch):
    @contextmanager
    def refuse(graph, stream):
        raise RuntimeError("operation not permitted")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    [spec] = grid(task="digits", method="sgd", alpha0=0.1, epochs=2)
    stack = Stack([spec], "cpu", False)
    stack.captures = True
    with pytest.warns(UserWarning, match="so each is launched by itself: operation not permitted") as told:
        [record] = trained(stack)
    assert len(told) == 1
    pd.testing.assert_frame_equal(record.trace, train_stack([spec])[0].trace)


def test_a_stack_is_trained_with_its_precision_on_its_device_and_a_stream_that_can_be_captured(monkeypatch):
    """On a GPU that is not the current one, of a caller who uses TF32; both are as before afterwards."""
    matmul, entered, seen = torch.backends.cuda.matmul, [], []

    @contextmanager
    def enter(what):
        entered.append(what)
        yield
        entered.remove(what)

    def at_work(*_):
        seen.append((list(entered), matmul.allow_tf32))
        return SimpleNamespace(cohorts=[])

    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, enter)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: f"a stream of {entered[0]}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    monkeypatch.setattr(sys.modules["hdlib.runs.stack"], "Stack", at_work)
    matmul.allow_tf32 = True
    try:
        with pytest.raises(KeyError):  # nothing was trained
            train_stack(grid(task="digits", method="sgd", alpha0=0.1, epochs=1), "cuda:1")
        assert seen == [(["cuda:1", "a stream of cuda:1"], False)]
        assert not entered and matmul.allow_tf32
    finally:
        matmul.allow_tf32 = False


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("model", ["logreg", "mlp"])
def test_a_stack_on_a_gpu_gives_the_cpus_curves_to_rounding(model, compiled):
    specs = mixed(model=model, precision="float64", epochs=4)
    specs += grid(task="digits", model=model, precision="float64", epochs=2, method=["sgd_hd", "adam_hd"],
                  beta="auto", alpha0=ALPHAS, **NARROW[model])  # fmt: skip
    for ours, theirs in zip(train_stack(specs, "cuda", compiled=compiled), train_stack(specs), strict=True):
        assert largest_difference(ours, theirs) < 1e-6, ours.spec


def test_memory_is_foreseen():
    """All that a stack holds and an evaluation adds, and not much more, which would be left unused."""
    for model, method in itertools.product(("logreg", "mlp"), ("sgd", "sgdn_hd", "adam_hd")):
        beta = 0.0 if method == "sgd" else 1e-3
        rates = [0.1 / i for i in range(1, 21)]
        specs = grid(task="digits", model=model, method=method, beta=beta, alpha0=rates, epochs=1)
        [cohort] = Stack(specs, "cpu", False).cohorts
        held = [*cohort.theta, *cohort.grad, *itertools.chain(*cohort.state), *cohort.out, *cohort.hidden, cohort.trail]
        evaluated = sum(t.numel() * EVALUATE / t.shape[2] for t in (*cohort.out, *cohort.hidden))
        used = sum(t.numel() * t.element_size() for t in held) + 4 * evaluated
        foreseen = sum(bytes_per_run(spec, *SIZES) for spec in specs)
        assert used <= foreseen <= 2.5 * used


class TestPlan:
    specs = grid(task="mnist", method="sgd", alpha0=ALPHAS, seeds=3, epochs=1)

    def test_a_stack_on_a_cpu_holds_one_seed(self):
        stacks = plan(self.specs, "cpu")
        assert sorted(len(stack) for stack in stacks) == [2, 2, 2]
        assert all(len({spec.seed for spec in stack}) == 1 for stack in stacks)

    def test_a_stack_on_a_gpu_holds_all_runs_of_a_task_and_model(self):
        others = grid(task="digits", method="sgd", alpha0=0.1, epochs=1)
        stacks = plan(self.specs + others, "cuda", memory=10**10)
        assert sorted(map(len, stacks)) == [1, 6]

    def test_a_stack_obeys_the_memory_budget(self):
        each = bytes_per_run(self.specs[0], 784, 10)
        stacks = plan(self.specs, "cuda", memory=4 * each)
        assert sum(map(len, stacks)) == 6 and max(map(len, stacks)) <= 4
        assert all(len(stack) == 1 for stack in plan(self.specs, "cuda", memory=1))
        assert all(len(stack) == 1 for stack in plan(self.specs[:1], "cpu", jobs=2, memory=1))
        [*pairs] = plan(self.specs, "cuda", jobs=2, memory=4 * each)  # of which each process has its share
        assert [len(stack) for stack in pairs] == [2, 2, 2]

    def test_a_stack_leaves_half_of_the_free_memory(self, monkeypatch):
        each = bytes_per_run(self.specs[0], 784, 10)
        monkeypatch.setattr(sys.modules["hdlib.runs.sweep"], "free_memory", lambda device: 4 * each)
        assert [len(stack) for stack in plan(self.specs, "cuda")] == [2, 2, 2]

    def test_a_stack_has_room_for_as_many_of_its_largest_run(self):
        small, large = self.specs[0], self.specs[0].with_(method="adam")
        assert bytes_per_run(small, 784, 10) < (each := bytes_per_run(large, 784, 10))
        assert [len(stack) for stack in plan([small, large], "cuda", memory=2 * each - 1)] == [1, 1]

    def test_large_models_are_trained_alone_on_a_cpu_and_long_runs_first(self):
        specs = grid(task="mnist", model="mlp", method="adam", alpha0=ALPHAS, epochs=[1, 5])
        stacks = plan(specs, "cpu", memory=10**10)
        assert [len(stack) for stack in stacks] == [1] * 4
        assert [stack[0].epochs for stack in stacks] == [5, 5, 1, 1]

    def test_runs_of_vgg_are_side_by_side_on_a_gpu_a_few_at_a_time_and_alone_on_a_cpu(self):
        """Only those that have steps of one kind: their precision, network, images and length are the same."""
        same = dict(task="cifar10", model="vgg", alpha0=1e-3)
        alike = grid(method=["sgd", "sgdn", "adam"], precision="bf16", epochs=2, seeds=2, **same)
        others = [*grid(method="sgd", precision="tf32", epochs=2, **same), *grid(method="sgd", epochs=[2, 3], **same)]
        others += grid(method="sgd", width_factor=0.5, precision="bf16", epochs=2, **same)
        stacks = plan([*alike, *others], "cuda", memory=10**12)
        assert sorted(map(len, stacks)) == [1, 1, 1, 1, 3, 3]
        assert {spec.key for stack in stacks if len(stack) == 3 for spec in stack} == {spec.key for spec in alike}
        assert {len(stack) for stack in plan(alike, "cuda", memory=int(2.5 * IMAGE_BYTES))} == {2}
        assert {len(stack) for stack in plan(alike, "cpu", jobs=2, memory=10**12)} == {1}
        large = [spec.with_(batch_size=256) for spec in alike]
        assert {len(stack) for stack in plan(large, "cuda", memory=int(2.5 * IMAGE_BYTES))} == {1}

    def test_a_narrow_vgg_is_less_work_than_a_wide_one_by_the_square_of_its_width(self):
        same = dict(task="cifar10", model="vgg", method="sgd", alpha0=1e-3)
        narrow, wide = RunSpec(width_factor=0.5, epochs=3, **same), RunSpec(epochs=1, **same)
        assert plan([narrow, wide], "cpu") == [[wide], [narrow]]
        assert plan([wide, longer := narrow.with_(epochs=5)], "cpu") == [[longer], [wide]]

    def test_no_process_is_idle_where_there_are_runs_for_it(self):
        stacks = plan(self.specs[:1] + self.specs[3:4], "cpu", jobs=2)
        assert [len(stack) for stack in stacks] == [1, 1]


def test_runs_that_differ_in_their_model_are_refused():
    with pytest.raises(ValueError, match="cannot be stacked"):
        train_stack(grid(task="digits", model=["logreg", "mlp"], method="sgd", alpha0=0.1, epochs=1))


def test_inner_products_are_per_run():
    a, b = torch.rand(3, 4, 5), torch.rand(3, 4, 5)
    expected = [(a[i] * b[i]).sum().item() for i in range(3)]
    assert per_run([a], [b]).tolist() == pytest.approx(expected, rel=1e-5)
