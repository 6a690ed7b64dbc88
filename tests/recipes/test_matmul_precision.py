"""Which precision of fp32 matrix products is in force inside each stage."""

from __future__ import annotations

import pytest
import torch

from discrete_distill.recipes.common.environment import matmul_precision
from discrete_distill.recipes.compare.comparison import Comparison
from discrete_distill.recipes.compare.contestants import Cost
from discrete_distill.recipes.compare.settings import ComparisonConfig
from discrete_distill.recipes.text.pipeline import Pipeline
from discrete_distill.recipes.text.settings import RecipeConfig

METHODS = {
    "teacher": "train_teacher", "judge": "train_judge", "distill": "distil", "guide": "guide", "sample": "sample",
    "evaluate": "evaluate", "report": "report",
}  # fmt: skip


@pytest.mark.parametrize("outside", ["highest", "medium"])
@pytest.mark.parametrize("matmul", ["exact", "tf32"])
def test_only_training_rounds_and_a_judge_never_does(matmul, outside, monkeypatch, tmp_path) -> None:
    seen = {}
    for stage, method in METHODS.items():

        def record(self, stage=stage):
            seen[stage] = torch.get_float32_matmul_precision()

        monkeypatch.setattr(Pipeline, method, record)
    monkeypatch.setattr(Pipeline, "check", lambda self, stages: None)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(outside)
    try:
        pipeline = Pipeline(RecipeConfig(output=tmp_path, precision="fp32", matmul=matmul), "command")
        for stage in METHODS:
            pipeline.run(stage)
        pipeline.run("all")
        assert torch.get_float32_matmul_precision() == outside
    finally:
        torch.set_float32_matmul_precision(before)
    training = "high" if matmul == "tf32" else "highest"
    assert seen == {**dict.fromkeys(METHODS, "highest"), **dict.fromkeys(("teacher", "distill", "guide"), training)}


def test_the_setting_of_before_returns_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), matmul_precision("tf32"):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


def test_methods_that_are_compared_round_while_they_are_trained(monkeypatch, tmp_path) -> None:
    seen = []
    config = ComparisonConfig(output=tmp_path, precision="fp32", matmul="tf32", methods=("didi",))
    comparison = Comparison(config, "command")

    def train(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return Cost(steps=0, seconds=0.0, network_evaluations=0.0)

    monkeypatch.setattr(comparison.training, "train", train)
    monkeypatch.setattr(Comparison, "load_teacher", lambda self: torch.nn.Linear(1, 1))
    before = torch.get_float32_matmul_precision()
    comparison.train()
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == before
