"""Mode collapse in a log: found where samples grow alike beyond noise, not elsewhere; a run warns, saves, and stops."""

import random
from pathlib import Path

import pytest
import torch
from torch import Generator

from discrete_distill.training import (
    CollapseRule,
    CollapseWatch,
    LoopConfig,
    TrainingCollapsed,
    TrainingLoop,
    explain,
    mode_collapse,
)
from discrete_distill.training.mode_collapse import stop_if_collapsed


def log_of(values: list[float], *, every: int = 5, noise: float = 0.0, name: str = "sample_agreement") -> list[dict]:
    """Lines with the values and a noise whose deviation is that share of the first one."""
    draw = random.Random(0)
    return [
        {"step": float(every * (index + 1)), name: value + noise * values[0] * draw.gauss(0.0, 1.0)}
        for index, value in enumerate(values)
    ]


def rising(first: float, last: float, lines: int = 12, flat: int = 3) -> list[float]:
    """A constant, then a line, then two lines at the end of it."""
    ramp = lines - flat - 2
    return [first] * flat + [first + (last - first) * (i + 1) / ramp for i in range(ramp)] + [last] * 2


@pytest.mark.parametrize("every", [1, 5, 10, 50])
@pytest.mark.parametrize(("first", "last"), [(0.01, 0.3), (0.01, 0.04), (0.25, 0.9), (0.6, 1.0)])
def test_samples_that_grow_alike_are_found_from_any_teacher(first: float, last: float, every: int) -> None:
    values = rising(first, last, lines=40, flat=12) + [last] * 10
    sign = mode_collapse(log_of(values, every=every, noise=0.05))
    assert sign is not None
    assert sign.step == 50 * every
    assert sign.since > 12 * every
    low, high = sign.changes["sample_agreement"]
    assert low == pytest.approx(first, rel=0.1)
    assert high == pytest.approx(last, rel=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize(("first", "last"), [(0.01, 0.01), (0.01, 0.02), (0.25, 0.4), (0.25, 0.1)])
def test_a_healthy_run_has_no_sign_at_any_line(first: float, last: float, noise: float) -> None:
    history = log_of(rising(first, last, lines=200), noise=noise)
    assert not any(mode_collapse(history[: end + 1]) for end in range(len(history)))


def test_a_factor_within_the_noise_is_no_sign() -> None:
    values = [0.01] * 4 + [0.01, 0.09, 0.01, 0.05]
    assert mode_collapse(log_of(values)) is None
    assert mode_collapse(log_of(values), CollapseRule(errors=0.0)) is not None


def test_the_sign_goes_when_samples_part_again_and_counts_from_its_last_coming() -> None:
    values = [0.01] * 6 + [0.5] * 6 + [0.01] * 6
    history = log_of(values)
    assert mode_collapse(history[:12]) is not None
    assert mode_collapse(history) is None
    again = mode_collapse(log_of(values + [0.5] * 16))
    assert again is not None
    assert again.since > 90.0
    assert again.updates == again.step - again.since


def test_without_agreement_the_entropy_of_the_first_tokens_tells() -> None:
    assert mode_collapse(log_of(rising(4.0, 1.0), name="first_entropy", noise=0.02)) is not None
    assert mode_collapse(log_of(rising(4.0, 3.0), name="first_entropy", noise=0.02)) is None


def test_logs_without_paths_and_logs_too_short_to_tell_have_no_sign() -> None:
    assert mode_collapse([]) is None
    assert mode_collapse([{"step": float(step), "loss": 1.0} for step in range(50)]) is None
    assert mode_collapse(log_of([0.01, 0.9])) is None


def test_the_sentence_has_the_figures_and_says_what_to_change() -> None:
    history = log_of(rising(0.01, 0.8))
    for line in history:
        line["teacher_divergence"] = line["step"] / 10.0
    (found,) = explain(history).values()
    for said in ("agree at 80.0%", "at first 1.0%", "divergence from the teacher", "learning rate", "data_kl"):
        assert said in found
    assert "more paths" in found
    assert "log_ratio.updates" in found


@pytest.mark.parametrize("wrong", [{"agreement_factor": 1.0}, {"entropy_share": 1.0}, {"errors": -1.0}, {"updates": 0}])
def test_rules_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CollapseRule(**wrong)


def collapsing(index: int, generator: Generator) -> dict[str, float]:
    return {"sample_agreement": 0.01 if index < 20 else 0.7}


def loop_of(folder: Path, step=collapsing, **settings: int) -> TrainingLoop:
    config = LoopConfig(**{"num_steps": 200, "log_every": 5, "checkpoint_every": 1000, **settings})
    return TrainingLoop(config, folder, {}, step, label="test")


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(each.name.removeprefix("step-")) for each in (folder / "checkpoints").glob("step-*"))


def test_a_run_warns_once_saves_at_once_and_stops_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = loop_of(tmp_path, stop_on_collapse=30)
    with pytest.raises(TrainingCollapsed, match=r"after 30 updates of MODE COLLAPSE.*lower the student"):
        loop.run()
    (saved,) = saved_steps(tmp_path)
    assert 20 < saved <= 60
    assert loop.history[-1]["step"] == saved + 30
    assert capsys.readouterr().out.count("MODE COLLAPSE") == 1


def test_a_short_run_spares_a_quarter_of_its_updates(tmp_path: Path) -> None:
    with pytest.raises(TrainingCollapsed, match=r"after 25 updates"):
        loop_of(tmp_path, num_steps=100).run()


def test_a_run_may_go_on_and_one_that_is_over_leaves_its_student(tmp_path: Path) -> None:
    assert loop_of(tmp_path / "on", stop_on_collapse=0).run()[-1]["step"] == 200.0
    late = loop_of(tmp_path / "late", lambda index, g: {"sample_agreement": 0.01 if index < 185 else 0.7})
    assert late.run()[-1]["step"] == 200.0
    assert saved_steps(tmp_path / "late")[-1] == 200


def test_a_limit_is_not_negative() -> None:
    with pytest.raises(ValueError, match="stop_on_collapse"):
        LoopConfig(num_steps=1, stop_on_collapse=-1)


def test_a_loop_of_ones_own_is_watched() -> None:
    watch = CollapseWatch(every=5, stop_after=20)
    signs = []

    def train() -> None:
        for step in range(1, 200):
            agreement = torch.tensor(0.01 if step <= 30 else 0.8)
            signs.append((step, watch.add(step, {"sample_agreement": agreement, "loss": torch.tensor(0.0)})))

    with pytest.raises(TrainingCollapsed):
        train()
    told = [step for step, sign in signs if sign is not None and sign.is_new]
    assert len(told) == 1
    assert 30 < told[0] <= 60
    assert watch.history[0] == {"step": 5.0, "sample_agreement": pytest.approx(0.01)}
    assert len(signs) + 1 == told[0] + 20


@pytest.mark.parametrize("wrong", [{"every": 0}, {"stop_after": -1}])
def test_a_watch_is_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CollapseWatch(**wrong)


def test_no_sign_and_no_limit_stop_nothing() -> None:
    stop_if_collapsed(None, 1)
    stop_if_collapsed(mode_collapse(log_of([0.01] * 6 + [0.9] * 60)), 0)
