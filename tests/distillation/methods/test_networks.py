"""Copies of a teacher that are trained: of which networks they can be made."""

import pytest
import torch
from torch import nn

from discrete_distill import SDTT, DiDiInstruct, DiDiInstructConfig, SDTTConfig


@pytest.mark.parametrize(
    "make",
    [
        lambda teacher: DiDiInstruct.make_student(teacher, DiDiInstructConfig.recommended()),
        lambda teacher: DiDiInstruct.make_auxiliary(
            teacher, DiDiInstructConfig.recommended(paths={"step_conditioning": False})
        ),
        lambda teacher: SDTT.make_student(teacher, SDTTConfig(step_conditioning=True)),
    ],
)
def test_a_network_that_cannot_be_told_its_step_is_named_with_the_remedy(make) -> None:
    with pytest.raises(TypeError, match=r"EmbeddingDenoiser.*Linear"):
        make(nn.Linear(2, 2))


def test_any_network_is_copied_without_its_step() -> None:
    config = DiDiInstructConfig.recommended(paths={"step_conditioning": False}, log_ratio={"step_conditioning": False})
    teacher = nn.Linear(2, 2).requires_grad_(False)
    for made in (DiDiInstruct.make_student(teacher, config), DiDiInstruct.make_auxiliary(teacher, config)):
        assert torch.equal(made.weight, teacher.weight)
        assert made.weight.requires_grad
