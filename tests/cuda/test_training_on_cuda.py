"""Training steps on a pretended CUDA device: devices agree, and the host waits no more often than stated."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pretended_cuda as pretended
import pytest
import torch
from pretended_cuda import CUDA, PretendedCuda

from discrete_distill.distillation.methods import (
    DiDiInstructConfig,
    IDLMConfig,
    PathConfig,
    PathKL,
    PathRatio,
    Regularization,
    RolloutMMDConfig,
    VocabularyCredit,
)
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import MaskedDiffusion
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.distill import Distillation
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.training import LoopConfig, OptimizerConfig, seeding

VOCAB, LENGTH, BATCH = 67, 8, 4
SMALL: dict[str, Any] = {"advantages": {"group_size": 2}, "log_ratio": {"warmup": 0}}
# The configuration of the method, whether there is a discriminator, and how often the host may wait in a step.
CONFIGURATIONS = {
    "paper": (DiDiInstructConfig.paper(**SMALL), True, 12),
    "default": (DiDiInstructConfig.recommended(regularization=Regularization(), **SMALL), False, 19),
    "vocabulary": (
        DiDiInstructConfig.recommended(
            credit=VocabularyCredit(), regularization=Regularization(path_kl=PathKL(coefficient=0.1)), **SMALL
        ),
        False,
        58,
    ),
    "path": (
        DiDiInstructConfig.recommended(
            advantages={"group_size": 2},
            log_ratio=PathRatio(),
            credit=VocabularyCredit(),
            regularization=Regularization(),
        ),
        False,
        22,
    ),
    "branching": (
        DiDiInstructConfig.recommended(paths={"branching": True}, regularization=Regularization(), **SMALL),
        False,
        21,
    ),
    "gradient steps": (
        DiDiInstructConfig.recommended(
            paths={"gradient_steps": 2}, regularization=Regularization(path_kl=PathKL(coefficient=0.1)), **SMALL
        ),
        False,
        29,
    ),
    "idlm": (IDLMConfig.recommended(**SMALL), False, 17),
    "mmd": (RolloutMMDConfig.recommended(advantages={"group_size": 2}), False, 11),
    "teacher reference": (DiDiInstructConfig.paper(reference="teacher", **SMALL), True, 13),
    "blocks": (
        DiDiInstructConfig.recommended(
            paths={"step_conditioning": False},
            advantages={"group_size": 2},
            log_ratio={"warmup": 0, "step_conditioning": False},
            regularization=Regularization(),
        ),
        False,
        20,  # one for the data that blocks follow
    ),
}
BLOCK_LENGTHS = {"blocks": 4}  # of the teacher; the others attend both ways


def distillation(method: PathConfig, discriminator: bool, block_length: int | None = None) -> Distillation:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "max_length": LENGTH, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    teacher = DiT(DiTConfig(**shape, cond_size=8, block_length=block_length))  # type: ignore[arg-type]
    torch.nn.init.normal_(teacher.output_layer.linear.weight, std=0.3)
    optimizer = OptimizerConfig(warmup_steps=1, ema_decay=0.9)
    config = DistillConfig(
        method=method, batch_size=BATCH, discriminator=discriminator, discriminator_blocks=1, teacher_steps=2,
        loop=LoopConfig(num_steps=10), student=optimizer, ratio=optimizer,
    )  # fmt: skip
    accelerator = SimpleNamespace(
        device=CUDA, num_processes=1, process_index=0, is_main_process=True, scaler=None, mixed_precision="no",
        autocast=nullcontext, backward=lambda loss: loss.backward(), wait_for_everyone=lambda: None,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, VOCAB - 1, 500).astype(np.uint16)
    stream = TokenStream(tokens, LENGTH)
    return Distillation(config, pretended.to_cuda(teacher), stream, MaskedDiffusion(VOCAB - 1), accelerator)


@pytest.mark.parametrize("source", ["cuda", "cpu"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_step_runs_on_the_device_and_seldom_waits(name, source) -> None:
    method, discriminator, budget = CONFIGURATIONS[name]
    with pretended.pretended_cuda():
        made = distillation(method, discriminator, BLOCK_LENGTHS.get(name))
        # Away from the teacher: a log-ratio of two equal networks is zero, and so is its gradient.
        with torch.no_grad():
            for parameter in made.student.parameters:
                parameter.inner.add_(0.05)
        before = [parameter.inner.clone() for parameter in made.student.parameters]
        for index in range(2):
            pretended.waits.clear()
            metrics = made.step(index, seeding.step_generator(0, index, device=torch.device(source)))
        seen = dict(pretended.waits)
        assert all(isinstance(parameter, PretendedCuda) for parameter in made.student.parameters)
        after = [parameter.inner for parameter in made.student.parameters]
        assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        assert metrics["student_skipped_updates"] == 0.0
    assert sum(seen.values()) <= budget, seen
