"""Whatever a sampler is given, it returns valid sequences or refuses by an error of its own."""

from __future__ import annotations

import linecache
import math
import random
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from counting import seeded

import discrete_distill
from discrete_distill import (
    AnalyticSampler,
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    EntropyBoundedSampler,
    FirstHittingSampler,
    GeometricSchedule,
    MaskedDiffusion,
    PathPlanningSampler,
    ReMaskingSampler,
    RGASampler,
    TeacherRatio,
)

PACKAGE = str(Path(discrete_distill.__file__).parent)
MASK, V, BATCH, LENGTH = 5, 6, 2, 4
PROCESS, SCORES = MaskedDiffusion(MASK), MaskedDiffusion(MASK, GeometricSchedule(0.1, 3.0))


def denoiser(x, t, attention_mask=None, topic=None):
    return torch.cos(torch.arange(V) * (x[..., None] + 1.0) + x.sum(1)[:, None, None])


class InParts:
    def features(self, x, t, attention_mask=None, topic=None):
        return denoiser(x, t)

    def project(self, features):
        return 2.0 * features


def with_change(change):
    return lambda x, t, attention_mask=None, topic=None: change(denoiser(x, t))


DENOISERS = [
    denoiser,
    InParts(),
    lambda x, t: denoiser(x, t),
    lambda x, t, **_: denoiser(x, t),
    with_change(lambda logits: logits.transpose(0, 1)),
    with_change(lambda logits: logits[:, :-1]),
    with_change(lambda logits: logits[0]),
    with_change(lambda logits: logits[..., :3]),
    with_change(lambda logits: logits * math.nan),
    with_change(lambda logits: logits + math.inf),
    with_change(lambda logits: logits - math.inf),
    with_change(lambda logits: logits.index_fill(-1, torch.tensor([1, 2]), -math.inf)),
    with_change(lambda logits: logits.numpy()),
    with_change(lambda logits: {"logits": logits}),
    with_change(lambda logits: logits.long()),
    with_change(lambda logits: logits.bfloat16()),
    None,
    "denoiser",
]
GUIDES = [
    lambda x_t, t, **_: x_t.float(),
    lambda x_t, t: x_t.float().mean(1),
    lambda x_t, t, attention_mask=None, topic=None: -x_t.sum(1),
    lambda x_t, t, **_: torch.full(x_t.shape, math.nan),
    lambda x_t, t, **_: torch.full(x_t.shape[:1], math.inf),
    lambda x_t, t, **_: torch.where(x_t[:, 0] == 1, -math.inf, 0.0),
    lambda x_t, t, **_: x_t.float().T,
    lambda x_t, t, **_: 3.0,
    TeacherRatio(denoiser, denoiser, PROCESS),
    None,
    7,
]
NUMBERS = [0, -1, 2.5, math.nan, math.inf, "3", None, True, torch.tensor(2.0), [1]]
# The first value is the usual one.
OPTIONS = {
    "temperature": [1.0, 0.7, 1, 1e-3, *NUMBERS],
    "top_k": [None, 1, 3, 100, *NUMBERS],
    "top_p": [None, 0.5, 1.0, *NUMBERS],
    "precision": [torch.float32, torch.float64, torch.bfloat16, "float32", None],
    "cfg_scale": [1.0, 0.0, 2.5, *NUMBERS],
    "chunk_rows": [384, 1, 3, *NUMBERS],
    "static": [None, True, False, "yes", 1],
    "check": [False, True, None, "no"],
    "process": [PROCESS, MaskedDiffusion(V), MaskedDiffusion(0), None, 5],
}
GRID_OPTIONS = {
    "num_steps": [3, 1, 9, 300, *NUMBERS],
    "grid": [
        "uniform", "cosine", [1.0, 0.5, 0.1, 0.0], torch.tensor([1.0, 0.6, 0.2, 0.0]), (0.7, 0.3, 0.2, 0.1), "log", [],
        [0.0, 0.5, 1.0], [1.0, 1.0, 0.0], [1.0, math.nan, 0.0], [2.0, 1.0], [1.0], ["1", "0"], 5, None, [True, False],
    ],
    "end": [0.0, 0.3, 1e-5, *NUMBERS],
    "noise_removal": ["sample", "greedy", "none", "argmax", None],
}  # fmt: skip
OWN_OPTIONS = {
    AncestralSampler: GRID_OPTIONS,
    AnalyticSampler: {**GRID_OPTIONS, "outputs": ["logits", "log_scores", "scores", None], "process": [SCORES]},
    ConfidenceSampler: {
        **GRID_OPTIONS,
        "order": ["confidence", "margin", "entropy", "random", None],
        "order_temperature": [0.0, 0.5, *NUMBERS],
        "greedy": [False, True, None, 1],
    },
    EntropyBoundedSampler: {
        "gamma": [0.1, 3.0, *NUMBERS],
        "order": ["entropy", "margin", "confidence", "", 3],
        "greedy": [False, True, "yes"],
    },
    FirstHittingSampler: {},
    ReMaskingSampler: {
        **GRID_OPTIONS,
        "strategy": ["cap", "rescale", "conf", "none", None],
        "eta": [None, 0.5, 1.0, *NUMBERS],
    },
    PathPlanningSampler: {
        **GRID_OPTIONS,
        "eta": [1.0, 0.5, *NUMBERS],
        "greedy": [False, True, 2],
        "planner": [
            None,
            lambda x, t: -x.double(),
            lambda x, t: x[:, 0].float(),
            lambda x, t: torch.full(x.shape, math.nan),
            lambda x, t: None,
            "planner",
        ],
    },
    RGASampler: {
        **GRID_OPTIONS,
        "num_candidates": [3, 1, *NUMBERS],
        "tilt": [(30.0, 40.0), (1.0,), (math.nan, 1.0), None, ("a", "b")],
        "tilt_fraction": [0.0, 0.5, 1.0, *NUMBERS],
        "normalize": ["mean", "sum", "max", None],
        "rerank_positions": ["all", "masked", "none", None],
        "rerank_scale": [1.0, 5.0, -2.0, *NUMBERS],
    },
}
X_INIT = torch.tensor([[1, MASK, MASK, 0], [MASK, 2, MASK, MASK]])
CALL = {
    "denoiser": DENOISERS,
    "shape": [None, (2, 4), [2, 4], (0, 4), (2, 0), (-1, 4), (2,), (2, 4, 3), (2.0, 4), (True, 4), "ab"],
    "x_init": [
        X_INIT, torch.zeros_like(X_INIT), torch.full_like(X_INIT, MASK), X_INIT.float(), X_INIT.int(), X_INIT.numpy(),
        X_INIT.tolist(), X_INIT[0], X_INIT[None], X_INIT[:0], X_INIT[:, :0], X_INIT - 3, X_INIT * 2, X_INIT == MASK,
        X_INIT.to("meta"), np.array(3), "text",
    ],
    "attention_mask": [
        None, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool(), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
        torch.zeros(2, 4).bool(), torch.ones(2, 4), torch.tensor([[2, 1, 1, 0]] * 2), torch.ones(2, 5).bool(),
        torch.ones(2, 1, 4, 4).bool(), torch.ones(4).bool(), [[True] * 4] * 2, np.ones((2, 4), bool),
    ],
    "generation_mask": [
        None, torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]]).bool(), torch.zeros(2, 4).bool(), torch.ones(2, 4),
        torch.ones(1, 4).bool(), "all",
    ],
    "first_row": [0, 3, 2**29, 2**31, 2**62, 2**70, *NUMBERS[1:]],
    "generator": [seeded, None, 5, "seed"],
    "device": [None, "cpu", torch.device("cpu")],
    "return_history": [False, True],
    "callback": [None, lambda step, state: None, "print"],
    "model_kwargs": [
        None, {}, {"topic": torch.tensor([1, 2])}, {"s": 1}, {"x_t": 1}, {"attention_mask": None}, {"atention_mask": 1},
        {1: 2}, torch.ones(2), "topic",
    ],
}  # fmt: skip


def choose(table, rng, changes):
    """The usual values, but for some that are drawn."""
    names = rng.sample(sorted(table), min(changes, len(table)))
    return {name: rng.choice(values) if name in names else values[0] for name, values in table.items()}


def refused_by_the_library(error):
    """An error that the package raises by a statement of its own."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        isinstance(error, (ValueError, TypeError))
        and frame.filename.startswith(PACKAGE)
        and linecache.getline(frame.filename, frame.lineno).strip().startswith("raise")
    )


def check_output(out, sampler, call):
    x_init = torch.full((BATCH, LENGTH), sampler.process.mask_token_id) if call["x_init"] is None else call["x_init"]
    generation_mask = x_init == sampler.process.mask_token_id
    for name in ("attention_mask", "generation_mask"):
        if call[name] is not None:
            generation_mask &= call[name].bool()
    assert out.sequences.dtype == torch.long
    assert bool((out.sequences[~generation_mask] == x_init[~generation_mask]).all())
    assert bool(((out.sequences >= 0) & (out.sequences < V))[generation_mask].all())
    left = getattr(sampler, "noise_removal", "") == "none"
    assert left or bool((out.sequences[generation_mask] != sampler.process.mask_token_id).all())
    assert bool((out.log_probs <= 0.0).all())
    assert bool((out.log_probs[~generation_mask] == 0.0).all())


@pytest.mark.parametrize("kind", OWN_OPTIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("blocks", [False, True], ids=["", "blocks"])
def test_every_outcome_is_a_valid_sample_or_an_error_of_the_library(kind, blocks) -> None:
    rng, ends = random.Random(f"{kind.__name__}{blocks}"), {"sample": 0, "refused": 0}
    for _ in range(150):
        options = choose({**OPTIONS, **OWN_OPTIONS[kind]}, rng, rng.choice([0, 1, 1, 2]))
        call = choose(CALL, rng, rng.choice([0, 1, 1, 2]))
        if call["shape"] is not None and rng.random() < 0.8:
            call["x_init"] = None
        guide = GUIDES[0] if rng.random() < 0.5 else rng.choice(GUIDES)
        arguments = {name: value for name, value in call.items() if name != "denoiser"}
        arguments["generator"] = seeded(0) if call["generator"] is seeded else call["generator"]
        try:
            sampler = kind(**options, **({"reward": guide} if kind is RGASampler else {}))
            drawn_by = BlockwiseSampler(sampler, block_length=rng.choice([1, 2, 3, 9])) if blocks else sampler
            out = drawn_by(call["denoiser"], **arguments)
        except Exception as error:
            if not refused_by_the_library(error):
                raise AssertionError(f"{options}, {call}, {guide}") from error
            ends["refused"] += 1
        else:
            check_output(out, sampler, call)
            ends["sample"] += 1
    assert min(ends.values()) > 10
