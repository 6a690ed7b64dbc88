from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from discrete_distill.kernels import STREAM_UNMASK, sample_rows, token_losses, uniform
from discrete_distill.kernels.dispatch import ENVIRONMENT_VARIABLE, resolve_backend
from discrete_distill.kernels.losses import _token_losses_backward_op, _token_losses_op
from discrete_distill.kernels.philox import _philox_op, torch_philox_4x32
from discrete_distill.kernels.sampling import _sample_rows_op

CPU = torch.device("cpu")


def sampling_arguments(tilt, active, dtype=torch.float32):
    return (
        torch.randn(5, 30).to(dtype),
        torch.tensor(3),
        torch.arange(5),
        torch.tensor(1),
        2,
        1.0,
        29,
        torch.randn(5, 30) if tilt else None,
        torch.tensor(2.0) if tilt else None,
        torch.arange(5) > 1 if active else None,
        active,
        "torch",
    )


@pytest.mark.parametrize(
    ("tilt", "active", "dtype"),
    [(False, False, torch.float32), (True, True, torch.float32), (False, True, torch.bfloat16)],
)
def test_opcheck_sample_rows(tilt, active, dtype):
    torch.library.opcheck(_sample_rows_op, sampling_arguments(tilt, active, dtype))


@pytest.mark.parametrize("teacher", [True, False])
def test_opcheck_token_losses(teacher):
    student, tokens = torch.randn(4, 9, requires_grad=True), torch.tensor([0, 1, 2, 3])
    other, active = (torch.randn(4, 9) if teacher else None), torch.tensor([True, False, True, True])
    torch.library.opcheck(_token_losses_op, (student, other, tokens, active, 8, 9, "torch"))
    statistics = _token_losses_op(student.detach(), other, tokens, active, 8, 9, "torch")
    arguments = (torch.randn(4, 4), student.detach(), other, tokens, active, statistics, 8, 9, "torch")
    torch.library.opcheck(_token_losses_backward_op, arguments)


@pytest.mark.parametrize(
    "row", [torch.arange(5), torch.arange(6).view(3, 2), torch.tensor(2)], ids=lambda t: str(t.shape)
)
def test_opcheck_philox(row):
    counters = torch.tensor(1), row, torch.tensor(2), torch.tensor(2**32 - 1)
    torch.library.opcheck(_philox_op, (torch.tensor(-3), *counters, "torch"))
    expected = torch.stack(torch_philox_4x32(-3, 1, row, 2, 2**32 - 1))
    assert torch.equal(_philox_op(torch.tensor(-3), *counters, "torch"), expected)


def test_tracing_with_fake_cuda_tensors_launches_nothing(monkeypatch):
    """On a machine without a GPU a launch, or a question to the device, would raise."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with FakeTensorMode():
        positions = torch.arange(6, device="cuda")
        draws = uniform(0, row=positions, candidate=torch.ones((2, 1), dtype=torch.int64, device="cuda"), step=3)
        assert draws.shape == (2, 6)
        assert draws.device.type == "cuda"
        graph = make_fx(lambda row: uniform(0, row=row))(positions).graph
    assert torch.ops.discrete_distill.philox_4x32.default in {node.target for node in graph.nodes}


def test_uniform_numbers_compile_without_a_break_and_stay_the_same():
    compiled = torch.compile(lambda seed, row: uniform(seed, row=row, step=3), fullgraph=True, backend="aot_eager")
    seed, row = torch.tensor(2**40 + 7), torch.arange(20)
    assert torch.equal(compiled(seed, row), uniform(seed, row=row, step=3))


def test_a_sampler_step_compiles_without_a_break_and_replays_with_tensor_scalars():
    def step(x_t, logits, seed, number, unmask):
        rows = torch.arange(len(x_t))
        drawn = sample_rows(
            logits,
            seed=seed,
            positions_R=rows,
            step=number,
            mask_token_id=10,
            active_R=x_t == 10,
            return_entropy=True,
        )
        unmasked = uniform(seed, row=rows, step=number, stream=STREAM_UNMASK) < unmask
        return torch.where((x_t == 10) & unmasked, drawn.tokens[:, 0], x_t), drawn.entropy

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x_t, logits, unmask = torch.full((64,), 10), torch.randn(64, 11), torch.tensor(0.4)
    x_t[::3] = 1
    graphs = []
    for number in range(3):
        arguments = (x_t, logits, torch.tensor(7), torch.tensor(number), unmask)
        ours, expected = compiled(*arguments), step(*arguments)
        assert torch.equal(ours[0], expected[0])
        assert torch.equal(ours[1], expected[1])
        graphs.append(ours[0])
    assert not torch.equal(graphs[0], graphs[1])  # the step is data of the graph, not a constant in it


def test_the_student_loss_compiles_without_a_break_and_has_the_same_gradient():
    def loss(student, teacher, tokens, advantage):
        losses = token_losses(student, teacher, tokens, weight_R=advantage, mask_token_id=10)
        divergence = 0.01 * losses.forward_kl + 0.02 * losses.reverse_kl
        return (-advantage * losses.log_prob + divergence - 5e-4 * losses.entropy).sum()

    arguments = torch.randn(8, 11), torch.randint(0, 10, (8,)), torch.tensor([0.0, 1, -2, 0.5, 0, 1, 1, 3])
    student = torch.randn(8, 11, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(student, *arguments), student)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(loss(student, *arguments), student)[0])


def test_importing_the_package_imports_no_triton():
    code = (
        "import sys, discrete_distill, discrete_distill.kernels\n"
        "assert 'triton' not in sys.modules, 'triton was imported'\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != ENVIRONMENT_VARIABLE}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_auto_is_torch_on_a_cpu_and_an_explicit_choice_beats_the_environment(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert resolve_backend("auto", CPU) == "torch"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "torch")
    assert resolve_backend("auto", CPU) == "torch"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "triton")
    with pytest.raises(ValueError, match=r"'triton' cannot run: .*(cpu|not installed)"):
        resolve_backend("auto", CPU)
    assert resolve_backend("torch", CPU) == "torch"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(ValueError, match=f"{ENVIRONMENT_VARIABLE} is 'cuda'; set it to one of"):
        resolve_backend("auto", CPU)


def test_triton_where_it_cannot_run_says_why_and_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    logits = torch.zeros(2, 3)
    options = {"seed": 0, "positions_R": torch.arange(2), "step": 0}
    with pytest.raises(ValueError, match=r"pass backend=('auto' or )?'torch'"):
        sample_rows(logits, backend="triton", **options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="triton is not installed; install it"):
        token_losses(logits, None, torch.tensor([0, 1]), backend="triton")


def test_auto_on_cuda_follows_what_the_device_can_do(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "hip", None)
    cuda = torch.device("cuda", 0)
    for capability, expected in (((9, 0), "triton"), ((8, 0), "triton"), ((7, 5), "torch")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert resolve_backend("auto", cuda) == expected
    with pytest.raises(ValueError, match=r"compute capability \(7, 5\), below \(8, 0\)"):
        resolve_backend("triton", cuda)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert resolve_backend("auto", cuda) == "torch"
