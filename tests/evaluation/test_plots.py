from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discrete_distill.evaluation import (
    Estimate,
    Frontier,
    FrontierPoint,
    StepCurve,
    plot_frontier,
    plot_perplexity_by_steps,
)


def frontier(method: str, level: float, entropies: tuple[float, ...] = (3.0, 4.0), judge: str = "j") -> Frontier:
    points = tuple(
        FrontierPoint(
            temperature=0.8 + 0.1 * index,
            seed=seed,
            entropy=entropy,
            corpus_entropy=5.0,
            nats_per_token=level + index + 0.1 * seed,
            standard_error=0.1,
        )
        for index, entropy in enumerate(entropies)
        for seed in (0, 1)
    )
    return Frontier(method=method, judge=judge, precision="fp32", num_samples=9, length=16, points=points)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every figure that was saved."""
    from matplotlib.figure import Figure

    axes: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: axes.append(self.axes[0]) or save(self, *a, **k))
    return axes


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    found = {line.get_label(): line for line in axes.get_lines()}
    return {label: list(zip(*line.get_data(), strict=True)) for label, line in found.items()}


def bars(axes: Any) -> list[list[list[float]]]:
    return [c.get_segments() for c in axes.collections if hasattr(c, "get_segments")]


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_frontier_plot_shows_means_bars_and_the_reading_at_the_entropy_of_data(
    tmp_path: Path, drawn: list[Any]
) -> None:
    path = tmp_path / "new" / "frontier.png"
    curves = [frontier("teacher", 4.0), frontier("student", 3.0), frontier("short", 2.0, (3.0, 3.2))]
    assert plot_frontier(curves, path, data_entropy=3.5, title="Title") == path
    assert is_png(path)
    (axes,) = drawn
    assert axes.get_yscale() == "log"
    assert legend(axes) == [
        f"teacher  ({math.exp(4.55):.3g} at data entropy)",
        f"student  ({math.exp(3.55):.3g} at data entropy)",
        "short  (does not reach data entropy)",
    ]
    teacher = lines(axes)[legend(axes)[0]]
    assert teacher == [pytest.approx((3.0, math.exp(4.05))), pytest.approx((4.0, math.exp(5.05)))]
    vertical = next(line for line in axes.get_lines() if list(line.get_xdata()) == [3.5, 3.5])
    assert list(vertical.get_ydata()) == [0, 1]
    low_and_high = [[tuple(end) for end in segment] for segment in bars(axes)[0]]
    assert low_and_high[0] == [pytest.approx((3.0, math.exp(4.0))), pytest.approx((3.0, math.exp(4.1)))]


def test_the_judge_and_the_number_of_seeds_are_written_under_the_plot(tmp_path: Path, drawn: list[Any]) -> None:
    plot_frontier([frontier("teacher", 4.0, judge="gpt2-large")], tmp_path / "f.png")
    assert drawn[0].figure._supxlabel.get_text() == (
        "judge: gpt2-large · 9 samples a point · 2 seeds, bars: standard error"
    )


def test_frontiers_under_different_judges_are_not_drawn_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one judge, got \['a', 'b'\]"):
        plot_frontier([frontier("x", 1.0, judge="a"), frontier("y", 1.0, judge="b")], tmp_path / "f.png")
    with pytest.raises(ValueError, match=r"got \[\]"):
        plot_frontier([], tmp_path / "f.png")
    assert not any(tmp_path.iterdir())


def curve(label: str, *nats: float | None) -> StepCurve:
    steps = (1, 2, 4, 8)[: len(nats)]
    return StepCurve(label=label, steps=steps, nats_per_token=nats, standard_errors=(0.1,) * len(nats))


def test_a_step_plot_is_logarithmic_both_ways_and_leaves_out_what_was_not_read(
    tmp_path: Path, drawn: list[Any]
) -> None:
    path = plot_perplexity_by_steps(
        [curve("teacher", 6.0, 5.0, None, 4.0), curve("student", None, None)],
        tmp_path / "steps.png",
        judge="j",
        data_perplexity=20.0,
        note="3 seeds",
    )
    assert is_png(path)
    (axes,) = drawn
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert legend(axes) == ["teacher", "student  (no reading)"]
    expected = [(1, math.exp(6.0)), (2, math.exp(5.0)), (8, math.exp(4.0))]
    assert lines(axes)["teacher"] == [pytest.approx(point) for point in expected]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    assert [tuple(end) for end in bars(axes)[0][2]] == [
        pytest.approx((8, math.exp(3.9))),
        pytest.approx((8, math.exp(4.1))),
    ]
    assert any(list(line.get_ydata()) == [20.0, 20.0] for line in axes.get_lines())
    assert axes.figure._supxlabel.get_text() == "judge: j · 3 seeds"


def test_a_curve_has_one_value_for_every_step() -> None:
    with pytest.raises(ValueError, match="2 steps, 1 log-perplexities and 2 standard errors"):
        StepCurve(label="x", steps=(1, 2), nats_per_token=(1.0,), standard_errors=(None, None))


def crosses(axes: Any) -> list[tuple[float, float]]:
    """The points that are marked as less diverse."""
    found = [each for each in axes.collections if each.get_label() == "less diverse than data"]
    return [tuple(point) for each in found for point in each.get_offsets()]


def test_points_that_are_less_diverse_than_data_are_crossed_and_named(tmp_path: Path, drawn: list[Any]) -> None:
    def with_agreement(method: str, level: float, agreements: tuple[float, float]) -> Frontier:
        bare = frontier(method, level)
        points = tuple(
            replace(
                point,
                diversity={"agreement": Estimate(agreements[index // 2], 0.001), "reverse_nats": Estimate(2.0, 0.01)},
            )
            for index, point in enumerate(bare.points)
        )
        return replace(bare, points=points)

    curves = [with_agreement("teacher", 4.0, (0.011, 0.01)), with_agreement("student", 3.0, (0.5, 0.012))]
    data = {"agreement": Estimate(0.01, 0.001), "reverse_nats": Estimate(1.0, 0.01)}
    plot_frontier(curves, tmp_path / "marked.png", data_entropy=3.5, data_diversity=data)
    plot_frontier(curves[:1], tmp_path / "healthy.png", data_entropy=3.5, data_diversity=data)
    plot_frontier(curves, tmp_path / "unknown.png", data_entropy=3.5)
    assert crosses(drawn[0]) == [pytest.approx((3.0, math.exp(3.05)))]
    assert legend(drawn[0])[1:] == ["student  (collapsed at data entropy)", "less diverse than data"]
    for axes in drawn[1:]:
        assert crosses(axes) == []
        assert "less diverse than data" not in legend(axes)


def test_steps_that_are_less_diverse_than_data_are_crossed(tmp_path: Path, drawn: list[Any]) -> None:
    marked = replace(curve("student", 6.0, None, 4.0), less_diverse=(False, True, True))
    plot_perplexity_by_steps([curve("teacher", 6.0, 5.0, 4.0), marked], tmp_path / "s.png", judge="j")
    assert crosses(drawn[0]) == [pytest.approx((4.0, math.exp(4.0)))]
    assert legend(drawn[0]) == ["teacher", "student", "less diverse than data"]
    with pytest.raises(ValueError, match="3 steps and 2 marks"):
        replace(marked, less_diverse=(True, False))


def test_a_step_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        plot_perplexity_by_steps([], tmp_path / "s.png", judge="j")


def test_neither_matplotlib_nor_transformers_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, discrete_distill.evaluation;print([m for m in ('matplotlib', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_plots_leave_the_users_backend_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # Another test's library may have taken it.
    plot_frontier([frontier("x", 1.0)], tmp_path / "f.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_a_perplexity_beyond_all_numbers_is_drawn_outside_the_plot(tmp_path: Path) -> None:
    curve = StepCurve(label="broken", steps=(1, 2), nats_per_token=(900.0, 3.0), standard_errors=(0.1, 0.1))
    plot_perplexity_by_steps([curve], tmp_path / "steps.png", judge="j")
    assert (tmp_path / "steps.png").stat().st_size > 0


def named_curve(label: str) -> StepCurve:
    return StepCurve(label=label, steps=(2, 4), nats_per_token=(3.0, 2.0), standard_errors=(0.1, 0.1))


def test_the_legend_of_long_names_stays_inside_the_picture(tmp_path: Path, drawn: list[Any]) -> None:
    for word in ("a", "a name of a method that hardly fits into half of the width of a picture"):
        curves = [named_curve(f"{word} {number}") for number in range(3)]
        plot_perplexity_by_steps(curves, tmp_path / "steps.png", judge="judge")
    assert len(drawn) == 2
    for axes in drawn:
        extent = axes.get_legend().get_window_extent()
        assert extent.x0 >= 0.0
        assert extent.x1 <= axes.figure.bbox.width
