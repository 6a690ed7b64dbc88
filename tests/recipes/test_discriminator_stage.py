"""A discriminator fitted to finished samples tells student from text, repeats, and resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from discrete_distill import Discriminator, MaskedDiffusion
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.discriminator import DiscriminatorConfig, DiscriminatorTrainer
from discrete_distill.training import OptimizerConfig

SHAPE = DiTConfig(vocab_size=6, max_length=8, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)
PROCESS = MaskedDiffusion(5)
RATE = OptimizerConfig(learning_rate=3e-3, warmup_steps=2, schedule="linear")


def alternating() -> TokenStream:
    """A text of two tokens; an untrained student uses all five alike."""
    return TokenStream(np.tile(np.array([0, 1], dtype=np.uint16), 50), 8)


def networks() -> tuple[DiT, DiT]:
    torch.manual_seed(0)
    return DiT(SHAPE), DiT(SHAPE)


def trainer(config: DiscriminatorConfig, seed: int = 3) -> DiscriminatorTrainer:
    return DiscriminatorTrainer(config, *networks(), alternating(), PROCESS, Accelerator(cpu=True), seed)


def fit(directory: Path, updates: int, optimizer: OptimizerConfig = RATE) -> list[dict[str, float]]:
    config = DiscriminatorConfig(updates=updates, pool=70, batch_size=16, optimizer=optimizer, checkpoint_every=5)
    return trainer(config).fit(directory)


def weights(directory: Path) -> bytes:
    return (directory / "student" / "discriminator" / "model.safetensors").read_bytes()


def test_it_learns_to_tell_the_student_from_the_text(tmp_path: Path) -> None:
    history = fit(tmp_path, 60)
    assert history[-1]["discriminator_accuracy"] > 0.75  # States with every token but a few hidden cannot be told.
    judge = Discriminator.from_pretrained(tmp_path / "student" / "discriminator").eval()
    text, t = torch.tensor([[0, 1] * 4]), torch.zeros(1)
    with torch.no_grad():
        assert judge(text, t).mean() < 0.0 < judge(torch.tensor([[2, 4, 3, 3, 0, 4, 2, 1]]), t).mean()


def test_one_seed_gives_the_same_pool_and_the_same_discriminator(tmp_path: Path) -> None:
    for name in ("first", "second"):
        fit(tmp_path / name, 10)
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    pools = [trainer(DiscriminatorConfig(updates=1, pool=70), seed).pool for seed in (3, 4)]
    assert pools[0].shape == (70, 8)
    assert not torch.equal(pools[0], pools[1])
    assert not bool(PROCESS.is_masked(pools[0]).any())


def test_a_fit_that_stops_half_way_resumes_to_the_same_discriminator(tmp_path: Path) -> None:
    constant = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    fit(tmp_path / "straight", 10, constant)
    fit(tmp_path / "broken", 5, constant)
    fit(tmp_path / "broken", 10, constant)
    assert weights(tmp_path / "straight") == weights(tmp_path / "broken")


def test_student_and_teacher_are_left_as_they_were(tmp_path: Path) -> None:
    teacher, student = networks()
    before = [parameter.clone() for network in (teacher, student) for parameter in network.parameters()]
    config = DiscriminatorConfig(updates=3, pool=4, batch_size=4, optimizer=RATE)
    DiscriminatorTrainer(config, teacher, student, alternating(), PROCESS, Accelerator(cpu=True), 0).fit(tmp_path)
    after = [parameter for network in (teacher, student) for parameter in network.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_numbers_out_of_range_are_refused_with_their_flag() -> None:
    with pytest.raises(ValueError, match=r"--discriminator\.updates"):
        DiscriminatorConfig(updates=-1)
    with pytest.raises(ValueError, match=r"--discriminator\.pool.*0"):
        DiscriminatorConfig(pool=0)
