"""A run belongs to its training text: the same text is resumed, whatever its storage, and other text is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from discrete_distill import MaskedDiffusion
from discrete_distill.distillation.methods import DiDiInstructConfig, Regularization
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.discriminator import DiscriminatorConfig, DiscriminatorTrainer
from discrete_distill.recipes.common.distill import distil
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.recipes.common.teacher import TeacherConfig, train_teacher
from discrete_distill.training import LoopConfig, token_cache
from discrete_distill.training.token_cache import cached_arrays

SHAPE = DiTConfig(vocab_size=6, max_length=8, hidden_size=8, num_layers=1, num_heads=1, cond_size=4)
PROCESS = MaskedDiffusion(5)
IDS = np.arange(100, dtype=np.uint16) % 5
OTHER = {
    "text": TokenStream(IDS[::-1].copy(), 4),
    "length": TokenStream(IDS, 8),
    "more text": TokenStream(np.tile(IDS, 2), 4),
}
LONG = np.arange(50_000, dtype=np.uint16) % 5


def network() -> DiT:
    torch.manual_seed(0)
    return DiT(SHAPE)


def fit_student(stream: TokenStream, folder: Path, num_steps: int) -> None:
    method = DiDiInstructConfig.recommended(
        advantages={"group_size": 2},
        paths={"num_steps": (2,)},
        log_ratio={"warmup": 0},
        regularization=Regularization(),
    )
    config = DistillConfig(method=method, loop=LoopConfig(num_steps=num_steps), batch_size=2)
    distil(config, network(), stream, PROCESS, Accelerator(cpu=True), folder)


def fit_discriminator(stream: TokenStream, folder: Path, num_steps: int) -> None:
    config = DiscriminatorConfig(updates=num_steps, pool=2, batch_size=2)
    DiscriminatorTrainer(config, network(), network(), stream, PROCESS, Accelerator(cpu=True), 0).fit(folder)


def fit_teacher(stream: TokenStream, folder: Path, num_steps: int) -> None:
    config = TeacherConfig(model=SHAPE, loop=LoopConfig(num_steps=num_steps), batch_size=2)
    train_teacher(config, {"train": stream, "heldout": stream}, PROCESS, Accelerator(cpu=True), folder)


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("fit", [fit_student, fit_discriminator, fit_teacher])
def test_a_run_is_not_resumed_on_other_text(fit, other: str, tmp_path: Path) -> None:
    fit(TokenStream(IDS, 4), tmp_path, 1)
    with pytest.raises(ValueError, match=r"text\."):
        fit(OTHER[other], tmp_path, 2)
    fit(TokenStream(IDS.astype(np.int64), 4), tmp_path, 2)


@pytest.mark.parametrize("position", [0, 1, 7777, 49_998, 49_999])
def test_one_other_token_is_another_text(position: int) -> None:
    other = LONG.copy()
    other[position] = (other[position] + 1) % 5
    assert TokenStream(other, 4).settings() != TokenStream(LONG, 4).settings()


def test_a_text_from_the_cache_has_the_digest_of_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken when they are written, and not again at the next start."""
    first = cached_arrays(tmp_path, ("train",), lambda: {"train": LONG})["train"]
    monkeypatch.setattr(token_cache, "content_digest", None)
    again = cached_arrays(tmp_path, ("train",), dict)["train"]
    settings = [TokenStream(each.array, 4, each.digest).settings() for each in (first, again)]
    assert settings == [TokenStream(LONG, 4).settings()] * 2


def test_settings_of_a_stream_do_not_depend_on_its_storage(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", IDS)
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    assert TokenStream(mapped, 4).settings() == TokenStream(IDS.astype(np.int32), 4).settings()
