"""One update of one network: clipping, schedule, moving average, gradients that are not finite."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from discrete_distill import SharedBase
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.training import ModuleOptimizer, OptimizerConfig


def module_optimizer(num_steps: int = 20, **settings: object) -> ModuleOptimizer:
    torch.manual_seed(0)
    config = OptimizerConfig(**{"learning_rate": 0.05, "warmup_steps": 0, **settings})  # type: ignore[arg-type]
    return ModuleOptimizer(nn.Linear(3, 2), config, num_steps, Accelerator(cpu=True))


def weights(made: ModuleOptimizer) -> torch.Tensor:
    return nn.utils.parameters_to_vector(made.module.parameters()).detach().clone()


def loss_of(made: ModuleOptimizer, seed: int) -> torch.Tensor:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    return (made.module(x) - 1.0).square().mean()


def test_updates_are_those_of_a_bare_adamw_with_clipping() -> None:
    made = module_optimizer(weight_decay=0.1, gradient_clip=0.3)
    torch.manual_seed(0)
    bare = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.05, betas=(0.9, 0.999), weight_decay=0.1)
    for seed in range(5):
        metrics = made.step(loss_of(made, seed))
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        (bare(x) - 1.0).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(bare.parameters(), 0.3)
        assert metrics["gradient_norm"] == pytest.approx(norm.item())
        optimizer.step()
    assert torch.equal(weights(made), nn.utils.parameters_to_vector(bare.parameters()))


def test_no_clipping_leaves_a_large_gradient_whole() -> None:
    made = module_optimizer(gradient_clip=0.0)
    kept = []
    made.optimizer.register_step_pre_hook(
        lambda optimizer, *_: kept.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])
    )
    norm = made.step(1e4 * loss_of(made, 0))["gradient_norm"]
    assert norm > 1e3
    assert torch.cat([grad.flatten() for grad in kept]).norm().item() == pytest.approx(norm)


def test_the_moving_average_is_its_closed_form() -> None:
    """After ``w_1 .. w_n``: ``d^(n-1) w_1 + (1 - d) sum_(k >= 2) d^(n-k) w_k``, one term an update."""
    decay, made = 0.7, module_optimizer(ema_decay=0.7)
    path = []
    for seed in range(8):
        made.step(loss_of(made, seed))
        path.append(weights(made).double())
    n = len(path)
    expected = decay ** (n - 1) * path[0]
    for k in range(2, n + 1):
        expected = expected + (1.0 - decay) * decay ** (n - k) * path[k - 1]
    average = nn.utils.parameters_to_vector(made.averaged.parameters()).double()
    torch.testing.assert_close(average, expected, rtol=1e-6, atol=1e-7)
    assert (average - path[-1]).abs().max() > 1e-3


def test_without_an_average_the_network_itself_is_sampled_from() -> None:
    made = module_optimizer(ema_decay=0.0)
    assert made.averaged is made.module


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(poison: float) -> None:
    made = module_optimizer(ema_decay=0.9)
    made.step(loss_of(made, 0))
    before, average_before = weights(made), [p.clone() for p in made.averaged.parameters()]
    moments = [state["exp_avg"].clone() for state in made.optimizer.state.values()]
    assert made.step(poison * loss_of(made, 1))["skipped_updates"] == 1.0
    assert torch.equal(weights(made), before)
    assert all(torch.equal(a, b) for a, b in zip(made.averaged.parameters(), average_before, strict=True))
    kept = [state["exp_avg"] for state in made.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, moments, strict=True))
    assert made.step(loss_of(made, 2))["skipped_updates"] == 1.0
    assert weights(made).isfinite().all()
    assert not torch.equal(weights(made), before)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    made = module_optimizer(num_steps=6, warmup_steps=2, learning_rate=1.0, schedule=schedule)
    rates = [made.step(loss_of(made, seed))["learning_rate"] for seed in range(6)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_frozen_parameters_stay() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    network[0].requires_grad_(False)
    frozen, trained = network[0].weight.clone(), network[1].weight.clone()
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.1, warmup_steps=0)
    made = ModuleOptimizer(network, config, 5, Accelerator(cpu=True))
    made.step(network(torch.ones(2, 3)).sum())
    assert torch.equal(network[0].weight, frozen)
    assert not torch.equal(network[1].weight, trained)


def test_a_learner_goes_on_exactly_where_another_was_saved() -> None:
    one = module_optimizer(ema_decay=0.9, schedule="cosine", warmup_steps=3)
    for seed in range(4):
        one.step(loss_of(one, seed))
    one.step(float("nan") * loss_of(one, 4))
    other = module_optimizer(ema_decay=0.9, schedule="cosine", warmup_steps=3)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for seed in range(4, 8):
        first, second = (made.step(loss_of(made, seed)) for made in (one, other))
        assert first == second
    assert torch.equal(weights(one), weights(other))
    averages = [nn.utils.parameters_to_vector(made.averaged.parameters()) for made in (one, other)]
    assert torch.equal(*averages)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"learning_rate.*0\.0"):
        OptimizerConfig(learning_rate=0.0)
    with pytest.raises(ValueError, match=r"ema_decay.*1\.0"):
        OptimizerConfig(ema_decay=1.0)


def test_scaled_half_precision_is_refused() -> None:
    scaling = SimpleNamespace(scaler=object())
    with pytest.raises(ValueError, match="fp16 is not supported; use bf16"):
        ModuleOptimizer(nn.Linear(1, 1), OptimizerConfig(), 1, scaling)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_before_training(value: float) -> None:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight[1, 2] = value
    with pytest.raises(ValueError, match="weight"):
        ModuleOptimizer(network, OptimizerConfig(), 5, Accelerator(cpu=True))


def adapted(seed: int, *, base_seed: int = 0) -> ModuleOptimizer:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    torch.manual_seed(base_seed)
    base = DiT(DiTConfig(vocab_size=11, max_length=6, hidden_size=16, num_layers=1, num_heads=2, cond_size=8)).eval()
    module = SharedBase(rank=2).adapted(base, step_conditioning=True, generator=torch.Generator().manual_seed(seed))
    config = OptimizerConfig(learning_rate=0.05, warmup_steps=0, ema_decay=0.5)
    return ModuleOptimizer(module, config, 20, Accelerator(cpu=True))


def denoising_loss(made: ModuleOptimizer) -> torch.Tensor:
    x_t = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(1))
    return made.module(x_t, torch.ones(4)).square().mean()


def test_a_checkpoint_of_low_rank_matrices_leaves_out_their_base_and_continues_exactly() -> None:
    made = adapted(3)
    made.step(denoising_loss(made))
    state = made.state_dict()
    base = {name for name, parameter in made.module.named_parameters() if not parameter.requires_grad}
    assert base
    assert not base & set(state["module"])
    assert not {f"module.{name}" for name in base} & set(state["average"])
    again = adapted(4)
    again.load_state_dict(state)
    for one in (made, again):
        one.step(denoising_loss(one))
    for one, other in ((made.module, again.module), (made.averaged, again.averaged)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_low_rank_matrices_are_refused_on_another_base() -> None:
    with pytest.raises(ValueError, match="another base"):
        adapted(3, base_seed=1).load_state_dict(adapted(3).state_dict())
    with pytest.raises(ValueError, match="another base"):
        module_optimizer().load_state_dict({**module_optimizer().state_dict(), "base": "0" * 16})
