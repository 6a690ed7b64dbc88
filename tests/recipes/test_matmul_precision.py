"""Which precision of fp32 matrix products is in force inside each stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from discrete_distill.recipes.common.environment import matmul_precision
from discrete_distill.recipes.common.settings import RecipeConfig
from discrete_distill.recipes.common.stages import Recipe
from discrete_distill.recipes.compare.recipe import make_recipe as make_comparison
from discrete_distill.recipes.compare.settings import ComparisonConfig
from discrete_distill.recipes.protein.recipe import make_recipe as make_protein
from discrete_distill.recipes.protein.settings import ProteinConfig
from discrete_distill.recipes.text.recipe import make_recipe as make_text
from discrete_distill.recipes.text.settings import TextConfig

RECIPES = {
    "text": (make_text, TextConfig),
    "protein": (make_protein, ProteinConfig),
    "compare": (make_comparison, ComparisonConfig),
}
TRAINING = {"teacher", "distill", "discriminator", "train"}


@pytest.mark.parametrize("outside", ["highest", "medium"])
@pytest.mark.parametrize("matmul", ["exact", "tf32"])
@pytest.mark.parametrize("name", RECIPES)
def test_only_training_rounds_and_a_judge_never_does(name, matmul, outside, tmp_path) -> None:
    make, settings = RECIPES[name]
    config: RecipeConfig = settings(output=tmp_path, precision="fp32", matmul=matmul)
    made, seen = make(config, "command"), {}

    def recorded(stage: str) -> object:
        def record() -> None:
            seen[stage] = torch.get_float32_matmul_precision()

        return replace(made.stages[stage], run=record, needs=(), inputs=(), reads_corpus=False)

    recipe: Recipe = replace(made, stages={stage: recorded(stage) for stage in made.stages})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(outside)
    try:
        for stage in ("all", *recipe.stages):
            recipe.execute(stage)
        assert torch.get_float32_matmul_precision() == outside
    finally:
        torch.set_float32_matmul_precision(before)
    training = "high" if matmul == "tf32" else "highest"
    assert seen == {stage: training if stage in TRAINING else "highest" for stage in made.stages}


def test_the_setting_of_before_returns_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), matmul_precision("tf32"):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before
