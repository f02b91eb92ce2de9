"""Compiled steps, steps on a device that must not be waited for, and CUDA graphs."""

import copy

import pytest
import torch
from problem import METHODS, flat, loss_of, make, tensors
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from hdlib import SGDHD, AdamHD, AdamWHD
from hdlib.optim._group import remember

RULES = ["additive", "multiplicative"]


def gradients(params, t):
    """Give the parameters the gradients of minibatch t."""
    for p, g in zip(params, torch.autograd.grad(loss_of(params, t), params), strict=True):
        p.grad = g


class TestCompile:
    @pytest.mark.parametrize(
        ("name", "tensor_lr", "options"),
        [
            ("sgd", False, {"rule": "multiplicative"}),
            ("nesterov", True, {}),
            ("adam", False, {}),
            ("adam", True, {"rule": "multiplicative"}),
            ("nesterov", False, {"hypergrad_lr": "auto"}),
            ("adam", True, {"hypergrad_lr": "auto"}),
        ],
    )
    def test_a_compiled_step_follows_the_eager_one(self, name, tensor_lr, options):
        torch._dynamo.reset()
        outcomes = []
        for compiled in (False, True):
            params = tensors()
            lr = 1.0 if "hypergrad_lr" in options else 0.01  # the first automatic step is then limited
            lr = torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr
            optimizer = make(name, params, lr=lr, weight_decay=0.01, **options)
            step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
            for t in range(4):
                gradients(params, t)
                step()
            outcomes.append((flat(params), optimizer.learning_rates()))
        torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-12, atol=1e-12)
        assert outcomes[1][1] == pytest.approx(outcomes[0][1], rel=1e-12)

    def test_what_inductor_writes_back_is_not_read_again_on_the_way(self):
        """A shared alpha goes into every group, and what passes over to another rate depends on it."""
        torch._dynamo.reset()
        groups = [dict(lr=torch.zeros((), dtype=torch.float64), differentiable=False) for _ in range(3)]
        for group in groups:
            group["step_size"] = torch.zeros((), dtype=torch.float64)
        move = torch.compile(lambda: remember(groups, {"lr": groups[0]["lr"] + 1, "step_size": 2 * groups[0]["lr"]}))
        for t in range(3):
            move()
            assert [(float(g["lr"]), float(g["step_size"])) for g in groups] == [(t + 1, 2 * t)] * 3

    @pytest.mark.parametrize("name", ["heavy_ball", "adam"])
    def test_with_a_tensor_learning_rate_it_settles_and_is_not_compiled_again(self, name):
        torch._dynamo.reset()
        params = tensors()
        optimizer = make(name, params, lr=torch.tensor(0.01))
        step = torch.compile(optimizer.step, backend="eager")
        for t in range(3):
            gradients(params, t)
            step()
        with torch._dynamo.config.patch(error_on_recompile=True):
            for t in range(3, 8):
                gradients(params, t)
                step()

    @pytest.mark.parametrize("name", ["sgd", "adam"])
    def test_a_whole_training_step_compiles_with_inductor(self, name):
        torch._dynamo.reset()
        outcomes = []
        for compiled in (False, True):
            # torch 2.11 loses what a compiled step does to a 0-dim float64 parameter, its own optimisers' steps too
            params = [p.detach().reshape(-1, *p.shape[1:]).requires_grad_() for p in tensors()]
            optimizer = make(name, params, lr=torch.tensor(0.01, dtype=torch.float64))

            def train(x, y, params=params, optimizer=optimizer):
                w1, b, w2, shift = params
                optimizer.zero_grad()
                F.mse_loss(torch.tanh(x @ w1 + b) @ w2 + shift, y).backward()
                optimizer.step()

            train = torch.compile(train) if compiled else train
            generator = torch.Generator().manual_seed(0)
            for _ in range(4):
                train(
                    torch.randn(16, 6, generator=generator, dtype=torch.float64),
                    torch.randn(16, 3, generator=generator, dtype=torch.float64),
                )
            outcomes.append((flat(params), optimizer.learning_rates()))
        torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-10, atol=1e-12)
        assert outcomes[1][1] == pytest.approx(outcomes[0][1], rel=1e-10)
        assert outcomes[0][1] != [0.01]


VALUES = [
    (SGDHD, {"rule": "multiplicative"}),
    (SGDHD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    (SGDHD, {"hypergrad_lr": 0.0}),
    (AdamHD, {}),
    (AdamHD, {"amsgrad": True, "weight_decay": 0.1, "rule": "multiplicative"}),
    (AdamHD, {"hypergrad_lr": 0.0}),
    (AdamWHD, {}),
    (SGDHD, {"momentum": 0.9, "hypergrad_lr": "auto"}),
    (AdamWHD, {"hypergrad_lr": "auto"}),
]


class TestNoWait:
    @pytest.mark.parametrize(
        "way",
        [
            {},
            {"foreach": True},
            {"foreach": False},
            {"capturable": True},
        ],
    )
    @pytest.mark.parametrize(("cls", "values"), VALUES)
    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels would be started on tensors that are none")
    def test_a_step_on_cuda_never_asks_the_device_for_a_number(self, cls, values, way):
        """On fake tensors, which have no values: `.item()`, and everything that uses it, raises."""
        with FakeTensorMode():
            params = [torch.zeros(shape, device="cuda", requires_grad=True) for shape in ((4, 3), (3,), ())]
            optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], **values, **way)
            for _ in range(3):
                for p in params:
                    p.grad = torch.ones_like(p)
                optimizer.step()
            for group in optimizer.param_groups:
                assert group["lr"].device.type == "cuda" and group["lr"].dtype == torch.float64
                with pytest.raises(DataDependentOutputException):
                    group["lr"].item()

    @pytest.mark.gpu
    @pytest.mark.parametrize("way", [{}, {"foreach": True}, {"foreach": False}, {"capturable": True}, {"fused": True}])
    @pytest.mark.parametrize(("cls", "values"), VALUES)
    def test_a_step_on_a_gpu_never_waits_for_it(self, cls, values, way):
        params = [torch.ones(shape, device="cuda", requires_grad=True) for shape in ((300, 300), (3,), ())]
        optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], **values, **way)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()  # its kernels are made, and tried
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("beta", [1e-3, "auto"])
    @pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
    def test_a_model_that_was_moved_to_the_device_since_is_not_waited_for(self, cls, beta):
        made_before = cls([torch.zeros(3, requires_grad=True)], hypergrad_lr=beta).param_groups[0]
        with FakeTensorMode():
            p = torch.zeros(3, device="cuda", requires_grad=True)
            optimizer = cls([p], hypergrad_lr=beta)
            optimizer.param_groups[0].update({**made_before, "params": [p]})
            assert isinstance(optimizer.param_groups[0]["lr"], float)
            for _ in range(3):
                p.grad = torch.ones_like(p)
                optimizer.step()
            assert optimizer.param_groups[0]["lr"].device == p.device

    @pytest.mark.parametrize("foreach", [None, True, False])
    @pytest.mark.parametrize("beta", [1e-3, "auto"])
    @pytest.mark.parametrize("cls", [AdamHD, AdamWHD])  # SGDHD copies, for which there are no such fake tensors here
    def test_a_step_on_an_apple_gpu_never_asks_it_for_a_number(self, cls, beta, foreach):
        with FakeTensorMode():
            p = torch.zeros(3, device="mps", requires_grad=True)
            optimizer = cls([p], hypergrad_lr=beta, foreach=foreach)
            for _ in range(3):
                p.grad = torch.ones_like(p)
                optimizer.step()
            assert optimizer.param_groups[0]["lr"].dtype == torch.float32

    @pytest.mark.parametrize("foreach", [None, True, False])
    @pytest.mark.parametrize("beta", [0.0, 1e-3, "auto"])
    @pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
    def test_a_group_over_two_devices_is_computed_on_each(self, cls, beta, foreach):
        with FakeTensorMode():
            params = [torch.zeros(3, device=f"cuda:{i}", requires_grad=True) for i in range(2)]
            optimizer = cls(params, hypergrad_lr=beta, foreach=foreach)
            for _ in range(3):
                for p in params:
                    p.grad = torch.ones_like(p)
                optimizer.step()
            parts, _ = optimizer._gather(optimizer.param_groups[0])
            assert [{p.device.index for p in part.params} for part in parts] == [{0}, {1}]

    @pytest.mark.parametrize("devices", [("cpu", "cuda:0"), ("cuda:0", "cpu")])
    @pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
    def test_kernels_for_the_cpu_are_given_its_tensors_alone(self, cls, devices):
        with FakeTensorMode():
            params = [torch.zeros(3, device=device, requires_grad=True) for device in devices]
            optimizer = cls(params, hypergrad_lr=1e-3, fused=True)
            for p in params:
                p.grad = torch.ones_like(p)
            parts, _ = optimizer._gather(optimizer.param_groups[0])
        assert {(part.way, p.device.type) for part in parts for p in part.params} <= {
            ("torch", "cuda"), ("torch", "cpu"), ("kernels", "cpu"), ("loop", "cpu")
        }  # fmt: skip

    def test_a_checkpoint_of_torchs_cpu_optimiser_comes_to_the_device(self):
        p = torch.zeros(3, requires_grad=True)
        native = torch.optim.Adam([p])
        p.grad = torch.ones(3)
        native.step()
        with FakeTensorMode(allow_non_fake_inputs=True):
            optimizer = AdamHD([torch.zeros(3, device="cuda", requires_grad=True)])
            optimizer.load_state_dict(native.state_dict())
            (state,) = optimizer.state.values()
            assert {x.device.type for x in (*state.values(), optimizer.param_groups[0]["lr"])} == {"cuda"}


@pytest.mark.gpu
class TestCudaGraph:
    @pytest.mark.parametrize("way", [{}, {"fused": True}, {"foreach": False}])
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("name", METHODS)
    def test_a_replayed_step_follows_the_eager_one(self, name, rule, way):
        params = [p.detach().cuda().requires_grad_() for p in tensors()]
        optimizer = make(name, params, rule=rule, capturable=True, **way)
        twins, twin = copy.deepcopy((params, optimizer))
        for p in params:
            p.grad = torch.empty_like(p)

        fixed = tensors()

        def fill(t):
            for p, q, g in zip(params, twins, torch.autograd.grad(loss_of(fixed, t), fixed), strict=True):
                p.grad.copy_(g)
                q.grad = g.cuda()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # on which the copies above are made
        with torch.cuda.stream(stream):
            for t in range(3):
                fill(t)
                optimizer.step()
                twin.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        for t in range(3, 8):
            fill(t)
            graph.replay()
            twin.step()
        torch.testing.assert_close(flat(params), flat(twins))
        assert optimizer.learning_rates() == pytest.approx(twin.learning_rates())
