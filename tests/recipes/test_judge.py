from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from discrete_distill.evaluation import CausalLMJudge, generative_perplexity
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.text.judge import (
    JudgeConfig,
    heldout_nats,
    load_judge,
    next_token_loss,
    save_judge,
    train_judge,
)
from discrete_distill.training import LoopConfig, OptimizerConfig, read_metrics

VOCAB, LENGTH = 16, 12


def tiny(**changes: object) -> JudgeConfig:
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "context": LENGTH,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "batch_size": 16,
        "evaluate_every": 20,
        "loop": LoopConfig(num_steps=60, log_every=20, checkpoint_every=1000),
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=5, schedule="cosine", ema_decay=0.9),
    }
    return JudgeConfig(**{**settings, **changes})  # type: ignore[arg-type]


def steps_of(size: int, *, up: bool, seed: int) -> np.ndarray:
    """A walk on a ring: each token is its predecessor plus one (or less one), or one further."""
    draw = random.Random(seed)
    walk = [0]
    while len(walk) < size:
        walk.append((walk[-1] + (1 if up else -1) * draw.choice((1, 2))) % VOCAB)
    return np.array(walk, dtype=np.uint16)


@pytest.fixture
def streams() -> dict[str, TokenStream]:
    """The train split obeys another distribution, so that a judge trained on it would be noticed."""
    return {
        "train": TokenStream(steps_of(3000, up=False, seed=0), LENGTH),
        "judge": TokenStream(steps_of(3000, up=True, seed=1), LENGTH),
        "heldout": TokenStream(steps_of(600, up=True, seed=2), LENGTH),
    }


def trained(streams: dict[str, TokenStream], directory: Path, config: JudgeConfig | None = None) -> CausalLMJudge:
    return train_judge(config or tiny(), streams, Accelerator(cpu=True), directory)


def test_the_judge_learns_the_judge_split_and_comes_near_its_entropy(
    streams: dict[str, TokenStream], tmp_path: Path
) -> None:
    judge = trained(streams, tmp_path)
    heldout = generative_perplexity(streams["heldout"].packed(), judge)
    other_distribution = generative_perplexity(streams["train"].packed(), judge)
    assert math.log(2) - 0.05 < heldout.nats_per_token < math.log(2) + 0.4 < math.log(VOCAB)
    assert other_distribution.nats_per_token > math.log(VOCAB)


def test_what_is_logged_loaded_and_returned_agrees(streams: dict[str, TokenStream], tmp_path: Path) -> None:
    judge = trained(streams, tmp_path)
    again = load_judge(tmp_path)
    heldout = streams["heldout"].packed()
    assert again.name == judge.name
    assert torch.equal(again.token_nats(heldout).nats, judge.token_nats(heldout).nats)
    logged = [entry["heldout_nats_per_token"] for entry in read_metrics(tmp_path)]
    assert len(logged) == 3
    with torch.no_grad():
        by_hand = float(next_token_loss(again.model, heldout))
    assert logged[-1] == pytest.approx(by_hand, abs=2e-3)
    assert logged[-1] < logged[0]


def test_weights_are_half_precision_on_disk_and_full_in_memory(streams: dict[str, TokenStream], tmp_path: Path) -> None:
    judge = trained(streams, tmp_path, tiny(saved_dtype="bfloat16"))
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in judge.model.parameters()} == {torch.float32}


def test_the_shipped_size_holds(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    config = JudgeConfig()
    network = GPT2LMHeadModel(config.network_config())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    save_judge(network, config, tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 2 * parameters < size < 2.6e6
    assert load_judge(tmp_path).name.startswith(f"gpt2-{parameters / 1e6:.1f}M@")


def test_one_seed_gives_one_judge_and_another_seed_another(streams: dict[str, TokenStream], tmp_path: Path) -> None:
    def name(folder: str, seed: int) -> str:
        loop = LoopConfig(num_steps=4, seed=seed)
        return trained(streams, tmp_path / folder, tiny(loop=loop)).name

    assert name("a", 0) == name("b", 0) != name("c", 1)


class Killed(RuntimeError): ...


class DyingStream(TokenStream):
    """Gives five batches and no more."""

    batches = 0

    def crops(self, batch_size: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
        self.batches += 1
        if self.batches > 5:
            raise Killed
        return super().crops(batch_size, generator=generator)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(streams: dict[str, TokenStream], tmp_path: Path) -> None:
    config = tiny(loop=LoopConfig(num_steps=8, checkpoint_every=4), dropout=0.3)
    whole = trained(streams, tmp_path / "whole", config)
    with pytest.raises(Killed):
        trained({**streams, "judge": DyingStream(streams["judge"].ids, LENGTH)}, tmp_path / "cut", config)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    assert trained(streams, tmp_path / "cut", config).name == whole.name


def test_a_folder_without_a_judge_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no judge in .*model\.safetensors is missing"):
        load_judge(tmp_path)


@pytest.mark.parametrize("change", ["missing", "superfluous"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: str) -> None:
    from transformers import GPT2LMHeadModel

    save_judge(GPT2LMHeadModel(tiny().network_config()), tiny(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del weights["transformer.ln_f.weight"]
    else:
        weights["transformer.h.7.ln_1.weight"] = torch.zeros(16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config\.json"):
        load_judge(tmp_path)


def test_sequences_above_the_context_are_refused_before_anything_is_written(
    streams: dict[str, TokenStream], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="12 tokens do not fit a judge context of 8"):
        trained(streams, tmp_path / "out", tiny(context=8))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"num_heads": 3}, {"eos_token_id": VOCAB}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        tiny(**wrong)


def test_measuring_leaves_the_network_as_it_was(streams: dict[str, TokenStream]) -> None:
    from transformers import GPT2LMHeadModel

    network = GPT2LMHeadModel(tiny().network_config()).train()
    heldout = streams["heldout"].packed()
    first = heldout_nats(network, tiny(), heldout)
    assert network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert heldout_nats(network, tiny(), heldout) == first
