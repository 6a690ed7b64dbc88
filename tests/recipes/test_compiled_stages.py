"""Stages that draw samples compile the blocks where training does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.text import pipeline as stages
from discrete_distill.recipes.text.settings import RecipeConfig


def is_compiled(network: DiT) -> bool:
    return all(block._compiled_call_impl is not None for block in network.blocks)


@pytest.mark.parametrize("backend", ["", "eager"])
def test_networks_that_are_sampled_from_are_compiled_as_configured(backend, monkeypatch, tmp_path) -> None:
    def network() -> DiT:
        return DiT(DiTConfig(vocab_size=11, max_length=8, hidden_size=16, num_layers=1, num_heads=2, cond_size=8))

    seen: list[DiT] = []
    packed = SimpleNamespace(packed=lambda length: torch.zeros(1, length))
    made = stages.Pipeline
    monkeypatch.setattr(made, "load_teacher", lambda self: network())
    monkeypatch.setattr(made, "load_student", lambda self: (network(), None))
    monkeypatch.setattr(made, "load_judge", lambda self: None)
    monkeypatch.setattr(made, "streams", {"heldout": packed})
    monkeypatch.setattr(stages, "sample_text", lambda *arguments: seen.append(arguments[2]))
    monkeypatch.setattr(stages, "evaluate", lambda *arguments, **options: seen.extend(arguments[1:3]))
    config = RecipeConfig(output=tmp_path, precision="fp32")
    config.distill.parallel.compile_backend = backend
    pipeline = made(config, "command")
    pipeline.sample()
    pipeline.evaluate()
    assert [is_compiled(each) for each in seen] == 3 * [backend != ""]
