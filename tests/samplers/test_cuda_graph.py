"""The sampler without data-dependent shapes draws what the plain one draws, and never looks at its data."""

import itertools
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from counting import seeded
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from discrete_distill import (
    AnalyticSampler,
    AncestralSampler,
    ConfidenceSampler,
    CudaGraphSampler,
    FirstHittingSampler,
    MaskedDiffusion,
    PathPlanningSampler,
    ReMaskingSampler,
    RGASampler,
    TeacherRatio,
)
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.samplers.cuda_graph import FixedTrajectory, row_capacities

VOCAB, MASK, LENGTH = 12, 11, 16
PROCESS = MaskedDiffusion(MASK)
WAITING = ("_local_scalar_dense", "nonzero", "_unique", "unique_dim", "masked_select", "is_nonzero", "equal")


def small_network(**options) -> DiT:
    torch.manual_seed(0)
    network = DiT(
        DiTConfig(
            vocab_size=VOCAB, max_length=LENGTH, hidden_size=16, num_layers=1, num_heads=2, cond_size=8, **options
        )
    )
    torch.nn.init.normal_(network.output_layer.linear.weight)
    return network.eval()


def trajectory_of(network: DiT) -> FixedTrajectory:
    sampler = CudaGraphSampler(AncestralSampler(PROCESS, num_steps=3))
    return sampler.trajectory(network, (4, LENGTH))


class Operations(TorchDispatchMode):
    """Notes every operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"top_k": 3},
        {"end": 0.2},
        {"end": 0.3, "noise_removal": "greedy"},
        {"end": 0.3, "noise_removal": "none"},
        {"grid": "cosine", "temperature": 0.7},
    ],
)
def test_it_draws_what_the_sampler_draws(choices) -> None:
    network, sampler = small_network(), AncestralSampler(PROCESS, num_steps=4, **choices)
    graph = CudaGraphSampler(sampler)
    for seed in (0, 1, 2):
        plain, fixed = (each(network, (8, LENGTH), generator=seeded(seed)) for each in (sampler, graph))
        assert bool((plain.sequences == fixed.sequences).all())
        torch.testing.assert_close(plain.log_probs, fixed.log_probs)
        assert fixed.nfe == plain.nfe


def test_too_little_room_is_noticed_and_made_good() -> None:
    network, sampler = small_network(), AncestralSampler(PROCESS, num_steps=4)
    graph = CudaGraphSampler(sampler)
    made = graph.trajectory(network, (8, LENGTH))
    made.room.fill_(20)
    made.capacities = [20] * len(made.capacities)
    plain, fixed = (each(network, (8, LENGTH), generator=seeded(0)) for each in (sampler, graph))
    assert bool((plain.sequences == fixed.sequences).all())
    assert fixed.nfe == 2 * plain.nfe


def test_no_operation_of_its_trajectory_waits_for_data() -> None:
    static = trajectory_of(small_network())
    with torch.no_grad(), Operations() as seen:
        static.run()
    assert any("sample_rows" in name for name in seen.names)
    assert not [name for name in seen.names if any(word in name for word in WAITING)]


def test_its_shapes_are_known_without_any_data() -> None:
    """Traced with tensors that hold nothing: whatever looked at data would raise."""
    static = trajectory_of(small_network())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x_t, log_probs, overflow = static.run()
    assert (x_t.shape, log_probs.shape, overflow.shape) == ((4, LENGTH), (4, LENGTH), ())


@pytest.mark.parametrize(
    "sampler",
    [
        AncestralSampler(PROCESS, num_steps=3),
        AnalyticSampler(PROCESS, num_steps=3, outputs="log_scores", static=True),
        ConfidenceSampler(PROCESS, num_steps=3, static=True),
        FirstHittingSampler(PROCESS),
        PathPlanningSampler(PROCESS, num_steps=3),
        ReMaskingSampler(PROCESS, num_steps=3, eta=0.5),
        ReMaskingSampler(PROCESS, num_steps=3, strategy="conf", static=True),
        RGASampler(
            PROCESS, reward=TeacherRatio(small_network(), small_network(), PROCESS), num_steps=3, num_candidates=2
        ),
    ],
    ids=lambda sampler: f"{type(sampler).__name__} {getattr(sampler, 'strategy', '')}",
)
def test_between_the_first_step_and_the_last_no_sampler_waits_for_data(sampler) -> None:
    network, seen, ends = small_network(), Operations(), []
    with seen:
        sampler(network, (4, LENGTH), generator=seeded(0), callback=lambda *_: ends.append(len(seen.names)))
    between = seen.names[ends[0] : ends[-1]]
    assert any("sample_rows" in name for name in between)
    assert not [name for name in between if any(word in name for word in WAITING)]


def test_room_is_the_mean_and_six_standard_deviations() -> None:
    capacities = row_capacities([0.25, 1 / 3, 0.5, 1.0], 10_000)
    assert capacities[:4] == [2764] * 4
    assert capacities[4] == 4
    assert row_capacities([1.0], 7) == [7, 4]


class CastsToBfloat16(TorchDispatchMode):
    """Counts casts of matrices to bf16, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.shapes[tuple(args[0].shape)] += 1
        return func(*args, **(kwargs or {}))


class RecordedGraph:
    """Stands for a captured graph: a walk through the trajectory that casts what it casts."""

    def replay(self) -> None:
        pass


def captured_on_a_cpu(static: FixedTrajectory, monkeypatch: pytest.MonkeyPatch) -> list[Counter[tuple[int, ...]]]:
    """Let the sampler capture without a GPU; what each captured walk, after its warm-up, casts."""
    captured: list[Counter[tuple[int, ...]]] = []

    def capture():
        static.run()
        with CastsToBfloat16() as casts:
            outputs = static.run()
        captured.append(casts.shapes)
        return RecordedGraph(), outputs

    static.capture = True
    monkeypatch.setattr(static, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return captured


@pytest.mark.parametrize("frozen", [False, True])
def test_a_captured_walk_casts_its_weights_itself(frozen, monkeypatch) -> None:
    """Cast weights of autocast's cache are freed when the caller leaves autocast; a graph must not read them."""
    network = small_network().requires_grad_(not frozen)
    static = trajectory_of(network)
    captured = captured_on_a_cpu(static, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.full((1, LENGTH), MASK), torch.ones(1))  # fills the cache
        static.draw(seeded(0))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), torch.no_grad(), CastsToBfloat16() as casts:
        static.run()
    assert captured == [casts.shapes]
    feed_forward = (16, 64)
    assert casts.shapes[feed_forward] == static.calls


def test_another_autocast_setting_captures_another_graph(monkeypatch) -> None:
    static = trajectory_of(small_network())
    captured = captured_on_a_cpu(static, monkeypatch)
    for enabled, dtype in (
        (False, torch.bfloat16),
        (False, torch.bfloat16),
        (True, torch.bfloat16),
        (True, torch.float16),
    ):
        with torch.autocast("cpu", dtype, enabled=enabled):
            static.draw(seeded(0))
    assert [bool(casts) for casts in captured] == [False, True, False]


def test_the_head_is_cast_once_a_call_and_not_once_a_chunk() -> None:
    for frozen, bf16_blocks in itertools.product((False, True), repeat=2):
        network = small_network(bf16_blocks=bf16_blocks).requires_grad_(not frozen)
        sampler = AncestralSampler(PROCESS, num_steps=3, chunk_rows=8)
        with CastsToBfloat16() as casts, torch.autocast("cpu", torch.bfloat16, enabled=not bf16_blocks):
            out = sampler(network, (8, LENGTH), generator=seeded(0))
        assert 0 < casts.shapes[(VOCAB, 16)] <= out.nfe


def test_what_needs_the_host_is_refused() -> None:
    with pytest.raises(ValueError, match="check=True looks at logits in every step"):
        CudaGraphSampler(AncestralSampler(PROCESS, check=True))
    with pytest.raises(ValueError, match="a graph is captured on CUDA, and the device is cpu"):
        CudaGraphSampler(AncestralSampler(PROCESS), capture=True)(small_network(), (1, LENGTH))


@pytest.mark.parametrize("options", [{"cfg_scale": 2.0}, {"progress": True}, {"static": False}])
def test_options_that_it_cannot_honour_are_refused(options) -> None:
    (value,) = options.values()
    with pytest.raises(ValueError, match=str(value)):
        CudaGraphSampler(AncestralSampler(PROCESS, **options))


@pytest.mark.parametrize("kind", [AnalyticSampler, ConfidenceSampler, ReMaskingSampler])
def test_another_sampler_is_refused_and_not_replaced(kind) -> None:
    with pytest.raises(TypeError, match=kind.__name__):
        CudaGraphSampler(kind(PROCESS))


def test_a_mask_outside_the_vocabulary_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=f"token id {VOCAB} "):
        CudaGraphSampler(AncestralSampler(MaskedDiffusion(VOCAB)))(small_network(), (1, LENGTH))


def test_one_trajectory_serves_its_denoiser_shape_and_device_alone() -> None:
    network, other = small_network(), small_network()
    sampler = CudaGraphSampler(AncestralSampler(PROCESS, num_steps=3))
    made = sampler.trajectory(network, (4, LENGTH))
    assert sampler.trajectory(network, (4, LENGTH), device="cpu") is made
    for another in ((other, (4, LENGTH)), (network, (5, LENGTH))):
        assert sampler.trajectory(*another) is not made
        made = sampler.trajectory(network, (4, LENGTH))
