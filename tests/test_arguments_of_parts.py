"""Bad values of the arguments of single parts: masks, times, features, distributions. A tensor of a wrong shape is
refused where it would be repeated over rows that it does not know; and how a good one lies in memory changes nothing.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from argument_kinds import MASK, B, Case, L, Mutation, V, check_refused, refusals
from torch import Tensor

from discrete_distill import (
    AncestralSampler,
    AuxiliaryDenoiserLogRatio,
    DiscriminatorLogRatio,
    IntermediateStateMatcher,
    LeaveOneOutNormalizer,
    MaskedDiffusion,
    RunningMean,
    ScoreFunctionIntegralKL,
    UniformTime,
    exact,
    group_advantages,
)
from discrete_distill.distillation.divergence import (
    LogRatio,
    difference_of_logs,
    median_bandwidth,
    mmd_squared,
    rbf_kernel,
    token_witness,
    vocabulary_cost,
)
from discrete_distill.distillation.methods import MMDLogRatio
from discrete_distill.evaluation import NGramJudge, generative_perplexity, measure_between_samples
from discrete_distill.kernels import linear_token_losses
from discrete_distill.models import (
    DiT,
    DiTConfig,
    add_lora,
    discriminator_accuracy,
    discriminator_loss,
    masked_mean,
)
from discrete_distill.process import ElboWeight, logits_at
from discrete_distill.training import step_generator

PROCESS = MaskedDiffusion(MASK)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def network(x_t: Tensor, t: Tensor, **_: Any) -> Tensor:
    """Logits of a token and its place."""
    return torch.sin(x_t[:, :, None] + torch.arange(V) * 1.7 + torch.arange(x_t.shape[1])[:, None])


def judge(x_t: Tensor, t: Tensor, **_: Any) -> Tensor:
    return torch.sin(x_t.float() + t[:, None])


def distribution(seed: int) -> Tensor:
    values = torch.rand(3, 3, generator=seeded(seed), dtype=torch.float64)
    return values / values.sum()


TOKENS = torch.randint(V - 1, (B, L), generator=seeded())
STATE = torch.where(torch.rand(B, L, generator=seeded(1)) < 0.5, MASK, TOKENS)
TIMES, FLAGS = torch.linspace(0.2, 0.8, B), torch.rand(B, L, generator=seeded(2)) < 0.8
LAWS = MaskedDiffusion(3)
DIT = DiT(DiTConfig(vocab_size=V, max_length=L, hidden_size=8, num_layers=1, num_heads=2, cond_size=8)).eval()
ESTIMATOR = ScoreFunctionIntegralKL(PROCESS, DiscriminatorLogRatio(PROCESS, judge))
RATIO = LogRatio(normal(B, L), normal(B))
FEATURES = {"student_BLD": normal(B, L, 3), "reference_MLD": normal(B, L, 3, seed=1)}
SIDES = {
    "student_logits_BL": normal(B, L),
    "reference_logits_BL": normal(B, L, seed=1),
    "student_counted": FLAGS,
    "reference_counted": FLAGS,
}
OF_SIDES = {
    "student_logits_BL": ("of one shape",),
    "reference_logits_BL": ("of one shape",),
    "student_counted": ("mask",),
    "reference_counted": ("mask",),
}
BOTH_LAWS = {"student_distribution": distribution(0), "teacher_distribution": distribution(1)}


def averaged(rewards: Tensor, mask: Tensor) -> Tensor:
    mean = RunningMean(0.5)
    mean.update(rewards, mask)
    return mean.value


CASES = {
    "is_masked": Case(PROCESS.is_masked, {"x_t": STATE, "generation_mask": FLAGS}, {"generation_mask": ("mask",)}),
    "judged_positions": Case(
        PROCESS.judged_positions, {"x_t": STATE, "generation_mask": FLAGS}, {"generation_mask": ("mask",)}
    ),
    "num_generated": Case(
        PROCESS.num_generated, {"x_0": TOKENS, "generation_mask": FLAGS}, {"generation_mask": ("mask",)}
    ),
    "unmask_probability": Case(
        PROCESS.unmask_probability,
        {"t": TIMES, "s": 0.5 * TIMES},
        {"t": ("per row",), "s": ("per row",)},
    ),
    "time_of_count": Case(
        PROCESS.time_of_count,
        {"count": torch.arange(B), "size": torch.full((B,), L)},
        {"count": ("per row",), "size": ("per row",)},
        frozenset({(name, label) for name in ("count", "size") for label in ("integers", "bool")}),
    ),
    "level": Case(
        lambda level, generator: PROCESS.draw_corruption(TOKENS, by="count", level=level, generator=generator),
        {"level": TIMES, "generator": seeded()},
        {"level": ("per row",), "generator": ("generator",)},
    ),
    "corrupt": Case(
        lambda generator: PROCESS.corrupt(TOKENS, TIMES, generator=generator),
        {"generator": seeded()},
        {"generator": ("generator",)},
    ),
    "times": Case(
        UniformTime().sample, {"n": 3, "generator": seeded()}, {"n": ("count",), "generator": ("generator",)}
    ),
    "density": Case(
        UniformTime().density,
        {"t": TIMES},
        {"t": ("per row",)},
        frozenset({("t", label) for label in ("one", "one too many", "a leading axis", "one number")}),
    ),
    "ElboWeight": Case(
        ElboWeight(),
        {"t": TIMES},
        {"t": ("per row",)},
        frozenset({("t", label) for label in ("one", "one too many", "a leading axis", "one number")}),
    ),
    "masked_log_probs": Case(
        PROCESS.masked_log_probs,
        {"logits": normal(B, V)},
        {"logits": ("of one shape",)},
        frozenset({("logits", label) for label in ("one row", "one row too few", "a leading axis")}),
    ),
    "logits_at": Case(
        lambda **given: logits_at(network, STATE, **given),
        {"t": TIMES, "positions": torch.arange(3)},
        {"t": ("per row",), "positions": ("words",)},
    ),
    "positions": Case(
        lambda positions: logits_at(network, STATE, TIMES, positions),
        {"positions": torch.arange(3).view(1, 3)[0]},
        {"positions": ("tokens",)},
        frozenset({("positions", label) for label in ("no rows", "no positions")}),
    ),
    "draw_parts": Case(
        lambda num_parts: PROCESS.draw_parts(TOKENS, num_parts, generator=seeded()),
        {"num_parts": 2},
        {"num_parts": ("count",)},
    ),
    "linear_token_losses": Case(
        lambda **given: linear_token_losses(normal(B, 3), tokens_R=torch.arange(B), **given),
        {"weight_VD": normal(V, 3), "bias_V": normal(V)},
        {"weight_VD": ("precision",), "bias_V": ("precision",)},
    ),
    "exact.TabularDenoiser.forward": Case(
        lambda t: exact.TabularDenoiser(2, 4, 3)(torch.zeros(B, 2, dtype=torch.long), t),
        {"t": TIMES},
        {"t": ("per row",)},
    ),
    "DiT": Case(lambda t: DIT(STATE, t), {"t": TIMES}, {"t": ("per row",)}),
    "DiscriminatorLogRatio": Case(
        DiscriminatorLogRatio(PROCESS, judge),
        {"x_t": STATE, "t": TIMES, "generation_mask": FLAGS},
        {"t": ("per row",), "generation_mask": ("mask",)},
    ),
    "AuxiliaryDenoiserLogRatio": Case(
        AuxiliaryDenoiserLogRatio(PROCESS, network, network),
        {"x_t": STATE, "t": TIMES, "x_0": TOKENS, "generation_mask": FLAGS},
        {"t": ("per row",), "x_0": ("words",), "generation_mask": ("mask",)},
    ),
    "estimator": Case(
        ESTIMATOR,
        {"x_0": TOKENS, "token_log_probs": -normal(B, L).abs(), "group_size": 2, "t": TIMES, "generator": seeded()},
        {"t": ("per row",), "group_size": ("count",), "generator": ("generator",)},
        frozenset({("group_size", "bool")}),
    ),
    "from_log_ratio": Case(
        lambda **given: ESTIMATOR.from_log_ratio(RATIO, group_size=2, **given),
        {"t": TIMES, "token_log_probs": -normal(B, L).abs(), "generation_mask": FLAGS},
        {"t": ("per row",), "generation_mask": ("mask",)},
    ),
    "difference_of_logs": Case(
        difference_of_logs,
        {"log_q": normal(B, V), "log_p": normal(B, V, seed=1)},
        {"log_q": ("of one shape",), "log_p": ("of one shape",)},
    ),
    "vocabulary_cost": Case(
        vocabulary_cost,
        {"log_probs_NV": normal(B, V).log_softmax(-1), "log_ratio_NV": normal(B, V, seed=1)},
        {"log_probs_NV": ("of one shape",), "log_ratio_NV": ("of one shape",)},
    ),
    "rbf_kernel": Case(
        rbf_kernel,
        {"first_ND": normal(B, 3), "second_MD": normal(B, 3), "bandwidth": torch.tensor([1.0])},
        {"first_ND": ("distribution",), "bandwidth": ("per row",)},
        frozenset(
            {("first_ND", label) for label in ("negative", "NaN", "infinite")}
            | {("bandwidth", label) for label in ("integers", "bool", "one", "a leading axis", "one number")}
        ),
    ),
    "median_bandwidth": Case(
        median_bandwidth,
        {"features_ND": normal(B, 3)},
        {"features_ND": ("words",)},
        frozenset({("features_ND", "float")}),
    ),
    "mmd_squared": Case(
        lambda bandwidth: mmd_squared(**FEATURES, bandwidth=bandwidth),
        {"bandwidth": 1.0},
        {"bandwidth": ("number", "positive", "finite")},
    ),
    "token_witness": Case(
        token_witness,
        {**FEATURES, "group_size": 2, "loss_mask_BL": FLAGS},
        {"student_BLD": ("words",), "group_size": ("count",), "loss_mask_BL": ("mask",)},
        frozenset({("student_BLD", "float")}),
    ),
    "MMDLogRatio": Case(
        lambda **given: MMDLogRatio(network, **given),
        {"group_size": 2, "bandwidth": 1.0},
        {"group_size": ("count",), "bandwidth": ("number", "positive", "finite")},
    ),
    "RunningMean": Case(averaged, {"rewards": normal(B, L), "mask": FLAGS}, {"mask": ("mask",)}),
    "loss_mask": Case(
        lambda loss_mask: group_advantages(normal(B), 2, loss_mask=loss_mask),
        {"loss_mask": TIMES > 0.3},
        {"loss_mask": ("mask",)},
    ),
    "masked_mean": Case(masked_mean, {"values_BL": normal(B, L), "loss_mask_BL": FLAGS}, {"loss_mask_BL": ("mask",)}),
    "discriminator_loss": Case(
        discriminator_loss,
        {**SIDES, "label_smoothing": 0.1, "weight_B": TIMES},
        {**OF_SIDES, "label_smoothing": ("number", "fraction"), "weight_B": ("per row",)},
        frozenset({("weight_B", "integers"), ("weight_B", "bool")}),
    ),
    "discriminator_accuracy": Case(discriminator_accuracy, SIDES, OF_SIDES),
    "add_lora": Case(
        lambda **given: add_lora(torch.nn.Sequential(torch.nn.Linear(3, 3)), **given),
        {"rank": 2, "alpha": 4.0, "dropout": 0.1},
        {"rank": ("count",), "alpha": ("number", "positive", "finite"), "dropout": ("number", "fraction")},
    ),
    "step_generator": Case(
        step_generator,
        {"seed": 0, "step": 1, "rank": 0},
        {"seed": ("count",), "step": ("count",), "rank": ("count",)},
        frozenset({("seed", "zero"), ("seed", "negative"), ("step", "zero"), ("rank", "zero")}),
    ),
    "measure_between_samples": Case(
        measure_between_samples,
        {"sequences_NL": TOKENS},
        {"sequences_NL": ("tokens",)},
        frozenset({("sequences_NL", label) for label in ("int32", "negative", "beyond the vocabulary")}),
    ),
    "exact.kl": Case(
        exact.kl, {"p": distribution(0), "q": distribution(1)}, {"p": ("distribution",), "q": ("distribution",)}
    ),
    "exact.total_variation": Case(
        exact.total_variation,
        {"p": distribution(0), "q": distribution(1)},
        {"p": ("distribution",), "q": ("distribution",)},
    ),
    "exact.entropy": Case(exact.entropy, {"p": distribution(0)}, {"p": ("distribution",)}),
    "exact.total_correlation": Case(
        exact.total_correlation, {"distribution": distribution(0)}, {"distribution": ("distribution",)}
    ),
    "exact.subset_kl": Case(
        exact.subset_kl,
        BOTH_LAWS,
        {"student_distribution": ("distribution",), "teacher_distribution": ("distribution",)},
    ),
    "exact.log_ratio": Case(
        lambda **given: exact.log_ratio(process=LAWS, **given),
        BOTH_LAWS,
        {"student_distribution": ("distribution",), "teacher_distribution": ("distribution",)},
    ),
    "exact.forward_distribution": Case(
        lambda distribution: exact.forward_distribution(distribution, LAWS, 0.5),
        {"distribution": distribution(0)},
        {"distribution": ("distribution",)},
    ),
    "exact.DistributionDenoiser": Case(
        lambda distribution: exact.DistributionDenoiser(distribution, 3),
        {"distribution": distribution(0)},
        {"distribution": ("distribution",)},
    ),
    "exact.enumerate_sequences": Case(
        exact.enumerate_sequences,
        {"vocab_size": 3, "length": 2},
        {"vocab_size": ("count", "size"), "length": ("count", "size")},
    ),
    "exact.TabularDenoiser": Case(
        lambda length: exact.TabularDenoiser(length, 4, 3), {"length": 2}, {"length": ("count", "size")}
    ),
    "exact.uniform_times": Case(exact.uniform_times, {"num_steps": 3}, {"num_steps": ("count",)}),
    "exact.tokens_of_words": Case(
        lambda words: exact.tokens_of_words(words, 3), {"words": torch.tensor([[0, 1]])}, {"words": ("words",)}
    ),
    "exact.words_of_tokens": Case(
        lambda tokens: exact.words_of_tokens(tokens, 3), {"tokens": torch.tensor([[0, 1]])}, {"tokens": ("words",)}
    ),
    "exact.modal_mixture": Case(
        exact.modal_mixture,
        {"num_modes": 3, "vocab_size": 3, "concentration": 0.1},
        {"num_modes": ("count",), "vocab_size": ("count",), "concentration": ("number", "positive", "finite")},
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_the_call_itself_works(case: Case) -> None:
    case.function(**case.arguments)


@pytest.mark.parametrize(("case", "argument", "mutation"), refusals(CASES))
def test_a_bad_value_is_refused_by_the_library(case: Case, argument: str, mutation: Mutation) -> None:
    check_refused(case, argument, mutation)


def strided(x: Tensor) -> Tensor:
    """The same values, every second place in memory."""
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def of_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def with_gradient(x: Tensor) -> Tensor:
    return x.clone().requires_grad_(x.is_floating_point())


def values_of(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, tuple | list):
        return [each for part in out for each in values_of(part)]
    return [each for each in vars(out).values() if isinstance(each, Tensor)] if hasattr(out, "__dict__") else []


SEEDED = {
    "corrupt": lambda x: PROCESS.corrupt(x, TIMES, generator=seeded()),
    "nelbo": lambda x: PROCESS.nelbo(network, x, generator=seeded()),
    "path": lambda x_init: IntermediateStateMatcher(PROCESS)(network, x_init=x_init, generator=seeded()).sequences,
    "sample": lambda x_init: (
        AncestralSampler(PROCESS, num_steps=3)(network, x_init=x_init, generator=seeded()).sequences
    ),
    "perplexity": lambda sequences: torch.tensor(
        generative_perplexity(sequences, NGramJudge(TOKENS, vocab_size=V, order=2)).perplexity
    ),
    "leave one out": lambda rewards: LeaveOneOutNormalizer(2)(rewards),
}
LAYOUTS = [
    *(pytest.param(case.function, case.arguments, id=name) for name, case in CASES.items() if name != "add_lora"),
    *(
        pytest.param(
            function, {function.__code__.co_varnames[0]: normal(B) if name == "leave one out" else given}, id=name
        )
        for (name, function), given in zip(SEEDED.items(), (TOKENS, TOKENS, STATE, STATE, TOKENS, TOKENS), strict=True)
    ),
]


@pytest.mark.parametrize(("function", "arguments"), LAYOUTS)
def test_neither_layout_nor_gradients_change_a_result_and_nothing_is_written(
    function: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    """Strided tensors, those of inference mode, and those that require a gradient; the arguments and PyTorch's own
    random numbers stay as they are."""

    def fresh() -> dict[str, Any]:
        return {name: seeded() if isinstance(each, torch.Generator) else each for name, each in arguments.items()}

    before = {name: each.clone() for name, each in arguments.items() if isinstance(each, Tensor)}
    state = torch.get_rng_state()
    expected = values_of(function(**fresh()))
    for layout in (strided, of_inference, with_gradient):
        given = {
            name: layout(each) if isinstance(each, Tensor) and each.dim() else each for name, each in fresh().items()
        }
        for found, value in zip(values_of(function(**given)), expected, strict=True):
            torch.testing.assert_close(found.detach(), value.detach(), equal_nan=True)
    assert all(torch.equal(arguments[name], each) for name, each in before.items())
    assert torch.equal(torch.get_rng_state(), state)
