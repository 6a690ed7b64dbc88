"""Bad values of public arguments, one at a time: each is refused by a `raise` of the library, with ValueError or
TypeError. Nothing is computed from it in silence, and no error comes from the depths of torch.

A case is a function with arguments that it accepts, and kinds for each argument that is replaced. A kind lists the
shapes, sizes and values that have no meaning for such an argument anywhere in the library. Arguments of a wrong Python
type are left to Python.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from argument_kinds import MASK, B, Case, L, Mutation, V, check_refused, refusals
from torch import Tensor

from discrete_distill import (
    AncestralSampler,
    BetaTime,
    ConfidenceSampler,
    EntropyBoundedSampler,
    GroupNormalizer,
    IntermediateStateMatcher,
    LogRatioReward,
    MaskedDiffusion,
    PathPlanningSampler,
    PolynomialSchedule,
    ReMaskingSampler,
    RunningMean,
    StratifiedTime,
    group_advantages,
    token_divergence,
)
from discrete_distill.distillation.divergence import mmd_squared, rbf_kernel
from discrete_distill.evaluation import (
    NGramJudge,
    generative_perplexity,
    likelihood_bound,
    measure_diversity,
    overlap_n,
    sample_entropy,
    self_bleu,
)
from discrete_distill.kernels import linear_token_losses, sample_rows, token_losses
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import logits_at
from discrete_distill.samplers import prompted
from discrete_distill.training import LoopConfig, OptimizerConfig


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tokens() -> Tensor:
    return torch.randint(V - 1, (B, L), generator=generator())


def logits(rows: int = B) -> Tensor:
    return torch.randn(rows, V, generator=generator())


def denoiser(x_t: Tensor, t: Tensor, **_: Any) -> Tensor:
    return torch.zeros(*x_t.shape, V)


PROCESS = MaskedDiffusion(MASK)
TIMES = torch.linspace(0.2, 0.8, B)
FLAGS = torch.ones(B, L, dtype=torch.bool)
JUDGE = NGramJudge(tokens(), vocab_size=V, order=2)
DIT = DiT(DiTConfig(vocab_size=V, max_length=L, hidden_size=8, num_layers=1, num_heads=2, cond_size=8))
PARTIAL = torch.where(torch.rand(B, L, generator=generator()) < 0.5, MASK, tokens())


def sampled(sampler: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **given: sampler(denoiser, generator=generator(), **given)


def made(kind: type, **fixed: Any) -> Callable[..., Any]:
    return lambda **given: kind(**fixed, **given)


# Figures of diversity ask of ids only whether they are equal.
ANY_IDS = frozenset({("sequences_NL", label) for label in ("beyond the vocabulary", "negative", "int32")})
# A network answers an empty batch with no logits, and embeds ids of either integer type.
EMPTY_OR_SHORT_IDS = frozenset({("x_t", "no rows"), ("x_t", "no positions"), ("x_t", "int32")})

CASES = {
    "corrupt": Case(
        PROCESS.corrupt,
        {"x_0": tokens(), "t": TIMES, "generation_mask": FLAGS},
        {"x_0": ("tokens",), "t": ("times",), "generation_mask": ("flags",)},
        # The process does not know the vocabulary, and hides ids of any integer type.
        frozenset({("x_0", "beyond the vocabulary"), ("x_0", "negative"), ("x_0", "int32")}),
    ),
    "corrupt_by_count": Case(
        PROCESS.corrupt_by_count,
        {"x_0": tokens(), "count": torch.full((B,), 2), "generation_mask": FLAGS},
        {"x_0": ("tokens",), "generation_mask": ("flags",)},
        frozenset({("x_0", "beyond the vocabulary"), ("x_0", "negative"), ("x_0", "int32")}),
    ),
    "nelbo": Case(
        lambda **given: PROCESS.nelbo(DIT, **given),
        {"x_0": tokens(), "generation_mask": FLAGS},
        {"x_0": ("tokens",), "generation_mask": ("flags",)},
    ),
    "logits_at": Case(
        lambda **given: logits_at(DIT, positions=torch.arange(3), **given),
        {"x_t": PARTIAL, "t": TIMES},
        {"x_t": ("tokens",)},
        EMPTY_OR_SHORT_IDS,
    ),
    "DiT": Case(lambda **given: DIT(**given), {"x_t": PARTIAL, "t": TIMES}, {"x_t": ("tokens",)}, EMPTY_OR_SHORT_IDS),
    "MaskedDiffusion": Case(
        MaskedDiffusion, {"mask_token_id": MASK}, {"mask_token_id": ("count",)}, frozenset({("mask_token_id", "zero")})
    ),
    "PolynomialSchedule": Case(PolynomialSchedule, {"exponent": 2.0}, {"exponent": ("positive", "finite")}),
    "StratifiedTime": Case(StratifiedTime, {"low": 0.0, "high": 1.0}, {"low": ("fraction",), "high": ("fraction",)}),
    "BetaTime": Case(BetaTime, {"a": 1.0, "b": 1.0}, {"a": ("positive", "finite"), "b": ("positive", "finite")}),
    "LogRatioReward": Case(LogRatioReward, {"clip": 8.0}, {"clip": ("positive",)}),
    "RunningMean": Case(RunningMean, {"decay": 0.9}, {"decay": ("fraction",)}),
    "group_advantages": Case(
        group_advantages,
        {"rewards": torch.arange(4.0), "group_size": 2, "clip": 3.0, "eps": 1e-4},
        {"rewards": ("rewards",), "group_size": ("count",), "clip": ("positive",), "eps": ("not negative", "finite")},
        frozenset({("group_size", "bool")}),
    ),
    "GroupNormalizer": Case(
        GroupNormalizer,
        {"group_size": 2, "clip": 3.0, "eps": 1e-4},
        {"group_size": ("count",), "clip": ("positive",), "eps": ("not negative", "finite")},
    ),
    "token_divergence": Case(
        lambda **given: token_divergence(kind="jeffreys", **given),
        {"student_logits": logits(), "teacher_logits": logits(), "beta": 0.5},
        {"student_logits": ("logits",), "teacher_logits": ("logits",), "beta": ("fraction",)},
    ),
    "rbf_kernel": Case(
        rbf_kernel,
        {"first_ND": logits(), "second_MD": logits(), "bandwidth": torch.tensor(1.0)},
        {"first_ND": ("logits",), "second_MD": ("logits",), "bandwidth": ("positive",)},
    ),
    "mmd_squared": Case(
        mmd_squared,
        {"student_BLD": torch.randn(B, L, 3), "reference_MLD": torch.randn(B, L, 3)},
        {"student_BLD": ("logits",), "reference_MLD": ("logits",)},
    ),
    "token_losses": Case(
        lambda **given: token_losses(mask_token_id=MASK, **given),
        {"student_logits_RV": logits(), "teacher_logits_RV": logits(), "tokens_R": torch.arange(4) % (V - 1)},
        {"student_logits_RV": ("logits",), "teacher_logits_RV": ("logits",)},
    ),
    "sample_rows": Case(
        lambda **given: sample_rows(positions_R=torch.arange(B), step=0, mask_token_id=MASK, seed=0, **given),
        {"logits_RV": logits(), "temperature": 1.0},
        {"logits_RV": ("logits",), "temperature": ("positive", "finite")},
    ),
    "linear_token_losses": Case(
        lambda **given: linear_token_losses(mask_token_id=MASK, **given),
        {"features_RD": logits(), "weight_VD": torch.randn(V, V), "tokens_R": torch.arange(4) % (V - 1)},
        {"features_RD": ("logits",), "weight_VD": ("logits",)},
    ),
    "sample": Case(
        sampled(AncestralSampler(PROCESS, num_steps=3)),
        {"x_init": PARTIAL, "attention_mask": FLAGS},
        {"x_init": ("tokens",), "attention_mask": ("flags",)},
        frozenset({("x_init", "beyond the vocabulary")}),
    ),
    "shape": Case(
        lambda batch, length: AncestralSampler(PROCESS, num_steps=3)(denoiser, (batch, length)),
        {"batch": B, "length": L},
        {"batch": ("count",), "length": ("count",)},
    ),
    "sampler options": Case(
        made(AncestralSampler, process=PROCESS),
        {
            "num_steps": 3,
            "temperature": 1.0,
            "top_k": 3,
            "top_p": 0.9,
            "chunk_rows": 384,
            "cfg_scale": 1.0,
        },
        {
            "num_steps": ("count",),
            "temperature": ("positive", "finite"),
            "top_k": ("count",),
            "top_p": ("fraction",),
            "chunk_rows": ("count",),
            "cfg_scale": ("finite",),
        },
    ),
    "ConfidenceSampler": Case(made(ConfidenceSampler, process=PROCESS), {"num_steps": 3}, {"num_steps": ("count",)}),
    "ReMaskingSampler": Case(made(ReMaskingSampler, process=PROCESS), {"num_steps": 3}, {"num_steps": ("count",)}),
    "PathPlanningSampler": Case(
        made(PathPlanningSampler, process=PROCESS), {"num_steps": 3}, {"num_steps": ("count",)}
    ),
    "EntropyBoundedSampler": Case(
        made(EntropyBoundedSampler, process=PROCESS), {"gamma": 0.5}, {"gamma": ("not negative",)}
    ),
    "student path": Case(
        lambda **given: IntermediateStateMatcher(PROCESS, num_steps=(2,))(denoiser, generator=generator(), **given),
        {"x_init": PARTIAL, "attention_mask": FLAGS, "group_size": 1},
        {"x_init": ("tokens",), "attention_mask": ("flags",), "group_size": ("count",)},
        frozenset({("x_init", "beyond the vocabulary"), ("group_size", "bool")}),
    ),
    "prompted": Case(
        lambda **given: prompted(mask_token_id=MASK, **given),
        {"prompts": [[0], [1, 2]], "length": L},
        {"length": ("count",)},
    ),
    "measure_diversity": Case(
        measure_diversity,
        {"sequences_NL": tokens()},
        {"sequences_NL": ("tokens",)},
        ANY_IDS,
    ),
    "sample_entropy": Case(
        sample_entropy,
        {"sequences_NL": tokens()},
        {"sequences_NL": ("tokens",)},
        ANY_IDS,
    ),
    "overlap_n": Case(
        overlap_n,
        {"sequences_NL": tokens(), "n": 2},
        {"sequences_NL": ("tokens",), "n": ("count",)},
        frozenset(
            {
                ("sequences_NL", "beyond the vocabulary"),
                ("sequences_NL", "negative"),
                ("sequences_NL", "int32"),
                ("n", "bool"),
            }
        ),
    ),
    "self_bleu": Case(
        self_bleu,
        {"sequences_NL": tokens(), "order": 2},
        {"sequences_NL": ("tokens",), "order": ("count",)},
        frozenset(
            {
                ("sequences_NL", "beyond the vocabulary"),
                ("sequences_NL", "negative"),
                ("sequences_NL", "int32"),
                ("order", "bool"),
            }
        ),
    ),
    "NGramJudge": Case(
        lambda **given: NGramJudge(vocab_size=V, **given),
        {"sequences_NL": tokens(), "order": 2},
        {"sequences_NL": ("tokens",), "order": ("count",)},
        frozenset({("sequences_NL", "int32"), ("order", "bool")}),
    ),
    "generative_perplexity": Case(
        lambda **given: generative_perplexity(judge=JUDGE, **given),
        {"sequences_NL": tokens(), "batch_size": 2},
        {"sequences_NL": ("tokens",), "batch_size": ("count",)},
        frozenset({("sequences_NL", "int32"), ("batch_size", "bool")}),
    ),
    "likelihood_bound": Case(
        lambda **given: likelihood_bound(PROCESS, DIT, generator=generator(), **given),
        {"sequences_NL": tokens(), "batch_size": 2},
        {"sequences_NL": ("tokens",), "batch_size": ("count",)},
        frozenset({("batch_size", "bool")}),
    ),
    "OptimizerConfig": Case(
        OptimizerConfig,
        {"learning_rate": 1e-3, "warmup_steps": 1, "gradient_clip": 1.0, "weight_decay": 0.0},
        {
            "learning_rate": ("not negative", "finite"),
            "warmup_steps": ("not negative",),
            "gradient_clip": ("not negative",),
            "weight_decay": ("not negative", "finite"),
        },
    ),
    "LoopConfig": Case(
        LoopConfig,
        {"num_steps": 10, "log_every": 1, "checkpoint_every": 5, "keep_checkpoints": 1},
        dict.fromkeys(("num_steps", "log_every", "checkpoint_every", "keep_checkpoints"), ("count",)),
    ),
    "DiTConfig": Case(
        made(DiTConfig, cond_size=8),
        {"vocab_size": V, "max_length": L, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
        {
            **dict.fromkeys(("vocab_size", "max_length", "hidden_size", "num_layers", "num_heads"), ("count",)),
            "dropout": ("fraction",),
        },
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_the_call_itself_works(case: Case) -> None:
    case.function(**case.arguments)


@pytest.mark.parametrize(("case", "argument", "mutation"), refusals(CASES))
def test_a_bad_value_is_refused_by_the_library(case: Case, argument: str, mutation: Mutation) -> None:
    check_refused(case, argument, mutation)


def test_numpy_integers_are_integers() -> None:
    assert AncestralSampler(PROCESS, num_steps=int(np.int64(3))).num_steps == 3
