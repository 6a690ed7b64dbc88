"""Flags of nested configurations: those of the preset's own kinds, without subcommands."""

from typing import Any

import pytest

from discrete_distill.distillation.methods import TokenCredit, with_changes
from discrete_distill.recipes.common.command_line import CommandLine
from discrete_distill.recipes.compare.__main__ import COMMAND_LINE as COMPARE
from discrete_distill.recipes.owt import COMMAND_LINE as TEXT
from discrete_distill.recipes.protein.__main__ import COMMAND_LINE as PROTEIN

PRESETS = [(line, name) for line in (TEXT, PROTEIN, COMPARE) for name in line.presets()]


@pytest.mark.parametrize(("line", "preset"), PRESETS, ids=[f"{line.program} {name}" for line, name in PRESETS])
def test_a_preset_without_flags_is_parsed_to_itself(line: CommandLine, preset: str) -> None:
    assert line.parse_config(preset, []) == line.presets()[preset]()


@pytest.mark.parametrize(
    ("preset", "flag", "changes"),
    [
        ("demo", "paths.num-steps=8", {"paths": {"num_steps": (8,)}}),
        ("demo", "credit.corruption.num-draws=2", {"credit": {"corruption": {"num_draws": 2}}}),
        ("demo", "log-ratio.no-step-conditioning", {"log_ratio": {"step_conditioning": False}}),
        ("demo", "regularization.data-kl.coefficient=0", {"regularization": {"data_kl": {"coefficient": 0.0}}}),
        ("demo-paper", "log-ratio.reuse-logits", {"log_ratio": {"reuse_logits": True}}),
        ("demo-paper", "paths.time-distribution.a=2", {"paths": {"time_distribution": {"a": 2.0}}}),
        (
            "demo-paper",
            "credit.corruption.time-weight.high=5",
            {"credit": {"corruption": {"time_weight": {"high": 5.0}}}},
        ),
    ],
)
def test_a_flag_changes_its_field_alone(preset: str, flag: str, changes: dict[str, Any]) -> None:
    parsed, expected = TEXT.parse_config(preset, [f"--distill.method.{flag}"]), TEXT.presets()[preset]()
    expected.distill.method = with_changes(expected.distill.method, **changes)
    assert parsed == expected


@pytest.mark.parametrize(
    ("preset", "flag"),
    [
        ("demo", "log-ratio.label-smoothing=0.2"),
        ("demo-paper", "credit.window=2"),
        ("demo-paper", "log-ratio.updates=2"),
    ],
)
def test_a_flag_of_another_kind_is_refused_by_name(preset: str, flag: str) -> None:
    with pytest.raises(ValueError, match=flag.split("=")[0]):
        TEXT.parse_config(preset, [f"--distill.method.{flag}"])


def test_what_a_part_refuses_is_said_with_its_value() -> None:
    with pytest.raises(ValueError, match="window must be 0 or more, got -1"):
        TEXT.parse_config("demo", ["--distill.method.credit.window=-1"])
    assert isinstance(TEXT.presets()["demo"]().distill.method.credit, TokenCredit)
