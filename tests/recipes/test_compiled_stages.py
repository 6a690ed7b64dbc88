"""Stages that draw samples compile the blocks where training does."""

from __future__ import annotations

import pytest

from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.run import Run
from discrete_distill.recipes.text import recipe as text
from discrete_distill.recipes.text.settings import TextConfig


def is_compiled(network: DiT) -> bool:
    return all(block._compiled_call_impl is not None for block in network.blocks)


@pytest.mark.parametrize("backend", ["", "eager"])
def test_networks_that_are_sampled_from_are_compiled_as_configured(backend, monkeypatch, tmp_path) -> None:
    def network() -> DiT:
        return DiT(DiTConfig(vocab_size=11, max_length=8, hidden_size=16, num_layers=1, num_heads=2, cond_size=8))

    seen: list[DiT] = []
    compile_blocks = Run.compile

    class Compiled(Exception):
        pass

    def record(self, *networks: DiT) -> None:
        compile_blocks(self, *networks)
        seen.extend(networks)
        raise Compiled

    monkeypatch.setattr(Run, "compile", record)
    monkeypatch.setattr(Run, "load_teacher", lambda self: network())
    monkeypatch.setattr(Run, "load_student", lambda self: (network(), None))
    monkeypatch.setattr(text, "judge_of", lambda *arguments: None)
    config = TextConfig(output=tmp_path, precision="fp32")
    config.distill.parallel.compile_backend = backend
    recipe = text.make_recipe(config, "command")
    for stage in ("sample", "evaluate"):
        with pytest.raises(Compiled):
            recipe.stages[stage].run()
    assert [is_compiled(each) for each in seen] == 3 * [backend != ""]
