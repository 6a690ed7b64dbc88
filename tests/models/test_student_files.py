"""Students of every kind as files: whole, as adapters over a base, and with what sampling needs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from every_kind import teacher
from external import MASK, example
from torch import nn

from discrete_distill import MaskedDiffusion, RGASampler, SharedBase, make_networks
from discrete_distill.models import (
    CheckpointError,
    Discriminator,
    DiT,
    TrunkDiscriminator,
    load_denoiser,
    load_discriminator,
    load_sampling,
    save_adapters,
    save_distilled,
    save_sampling,
)
from discrete_distill.process import CosineSchedule, PolynomialSchedule

KINDS = ["bert", "modernbert", "llama", "tied llama", "dit"]


def moved(kind: str, sharing: Any) -> Any:
    student = make_networks(teacher(kind), log_ratio=None, sharing=sharing).student
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    return student


def agree(loaded: Any, student: Any) -> None:
    x, t = example()
    for given in ({}, {"s": 0.5 * t}):
        torch.testing.assert_close(loaded(x, t, **given), student(x, t, **given), atol=2e-4, rtol=1e-4)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_matrices_are_saved_alone_and_loaded_over_their_base(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    teacher(kind).save_pretrained(tmp_path / "base")
    student = moved(kind, SharedBase(rank=2))
    save_adapters(tmp_path / "student", student, base=tmp_path / "base")
    agree(load_denoiser(tmp_path / "student"), student)
    stored, base = (tmp_path / name for name in ("student/adapters.safetensors", "base/model.safetensors"))
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert 4 * trained < stored.stat().st_size < 4 * trained + 10_000
    assert base.exists()
    with pytest.raises(ValueError, match="low-rank"):
        save_adapters(tmp_path / "none", teacher(kind), base=tmp_path / "base")
    assert not (tmp_path / "none").exists()
    (tmp_path / "student" / "adapters.json").write_text('{"base": "x"}')
    with pytest.raises((CheckpointError, FileNotFoundError, OSError)):
        load_denoiser(tmp_path / "student")


@pytest.mark.parametrize("sharing", ["copies", SharedBase(rank=2)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_student_is_saved_whole_with_a_card(kind: str, sharing: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    student = moved(kind, sharing)
    save_distilled(tmp_path, student)
    agree(load_denoiser(tmp_path), student)
    assert (
        type(teacher(kind) if kind == "dit" else teacher(kind).model).__name__ in (tmp_path / "README.md").read_text()
    )
    assert isinstance(student, DiT) == (kind == "dit")


def test_what_sampling_needs_is_read_back(tmp_path: Path) -> None:
    for schedule in (CosineSchedule(), PolynomialSchedule(exponent=3.0)):
        process = MaskedDiffusion(MASK, schedule, forbidden_token_ids=[0, 2])
        save_sampling(tmp_path, process, [4, 8])
        assert load_sampling(tmp_path) == (process, (4, 8), "random")

    class Mine(CosineSchedule):
        pass

    with pytest.raises(ValueError, match="Mine"):
        save_sampling(tmp_path, MaskedDiffusion(MASK, Mine()))
    for damaged in ("{}", '{"schedule": {"name": "MaskedDiffusion"}}'):
        (tmp_path / "sampling.json").write_text(damaged)
        with pytest.raises(CheckpointError):
            load_sampling(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_sampling(tmp_path / "nowhere")


def test_a_module_without_files_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Linear"):
        save_distilled(tmp_path / "there", nn.Linear(2, 2))
    assert not (tmp_path / "there").exists()


def judge_and_student(kind: str, sharing: Any) -> tuple[Any, Any]:
    """Discriminator and student of a kind, moved away from their teacher."""
    networks = make_networks(teacher(kind), log_ratio="discriminator", sharing=sharing, trainable_blocks=1)
    with torch.no_grad():
        for seed, parameters in enumerate(networks.trainable_parameters().values()):
            g = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return networks.discriminator, networks.student


@pytest.mark.parametrize("sharing", ["copies", SharedBase(rank=2)])
@pytest.mark.parametrize("kind", [*KINDS, "esm-2", "llada", "dream"])
def test_a_discriminator_beside_its_student_steers_as_before(kind: str, sharing: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    judge, student = judge_and_student(kind, sharing)
    save_distilled(tmp_path / "both", student, judge)
    given = {"base": teacher(kind)} if "trunk" in (tmp_path / "both" / "discriminator.json").read_text() else {}
    assert bool(given) == (kind != "dit" or sharing != "copies")
    loaded = load_discriminator(tmp_path / "both", **given)
    x_t, t = example()
    assert torch.equal(loaded(x_t, t), judge(x_t, t))
    trained = [name for name, parameter in judge.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in loaded.named_parameters() if parameter.requires_grad] == trained
    process = MaskedDiffusion(MASK)
    samples = [
        RGASampler(process, reward=reward, num_steps=3, rerank_scale=5.0)(
            student, (4, 7), generator=torch.Generator().manual_seed(0)
        ).sequences
        for reward in (judge, loaded)
    ]
    assert torch.equal(*samples)


@pytest.mark.parametrize("sharing", ["copies", SharedBase(rank=2)])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_discriminator_finds_its_base_by_name_and_holds_what_was_trained(
    kind: str, sharing: Any, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    teacher(kind).model.save_pretrained(tmp_path / "base")  # llama: nothing there tells how it is called
    judge, student = judge_and_student(kind, sharing)
    save_distilled(tmp_path / "both", student, judge, base=tmp_path / "base")
    loaded: Any = load_discriminator(tmp_path / "both")
    torch.testing.assert_close(loaded(*example()), judge(*example()), atol=1e-6, rtol=1e-5)
    size = 4 * sum(p.numel() for p in judge.parameters() if p.requires_grad)
    assert size < (tmp_path / "both" / "discriminator.safetensors").stat().st_size < size + 10_000
    shared = load_discriminator(tmp_path / "both", base=teacher(kind))
    places = {p.data_ptr() for p in teacher(kind).parameters()}
    assert {p.data_ptr() for p in shared.parameters() if not p.requires_grad} <= places
    with pytest.raises(CheckpointError, match=r"discriminator\.safetensors"):
        load_discriminator(tmp_path / "both", base=teacher("modernbert"))
    with pytest.raises(ValueError, match="trainable_blocks"):
        load_discriminator(tmp_path / "both", trainable_blocks=1)


def test_a_discriminator_without_its_base_or_of_unknown_making_is_refused(tmp_path: Path) -> None:
    judge, _ = judge_and_student("bert", "copies")
    judge.requires_grad_(False)  # frozen after training, all of it is still written
    judge.save_pretrained(tmp_path)
    assert torch.equal(load_discriminator(tmp_path, base=teacher("bert"))(*example()), judge(*example()))
    with pytest.raises(ValueError, match="base="):
        load_discriminator(tmp_path)
    with pytest.raises(ValueError, match="WrappedDenoiser"):
        TrunkDiscriminator(teacher("bert")).save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    Discriminator.from_denoiser(teacher("dit"), 1).save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    with pytest.raises(ValueError, match="base"):
        load_discriminator(tmp_path / "whole", base=teacher("dit"))
