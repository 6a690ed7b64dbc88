"""The benchmark of updates, with a tiny teacher: it counts the evaluations that the methods' equations say."""

import argparse
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

ROOT = Path(__file__).parents[2]


def test_evaluations_of_an_update_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    AcceleratorState._reset_state(reset_partial_state=True)
    from benchmarks import methods

    assert set(methods.DISTILLED) >= {"sdtt", "alpha", "certainty", "on-policy"}
    found = {
        name: methods.measure(name, argparse.Namespace(threads=1, tiny=True, length=16, steps=1))
        for name in ("alpha", "on-policy", methods.STORED)
    }
    batch = found["alpha"]["batch_size"]
    assert found["alpha"]["evaluations"] == 3 * batch  # One pass with its backward pass, which counts twice.
    assert found[methods.STORED]["evaluations"] == 2 * 3 * batch  # Two states of each sequence, and no teacher.
    # Path of 8 steps, tokens to commit, outcome of at most 8 steps, the teacher's answer, and the student's.
    evaluations = found["on-policy"]["evaluations"]
    assert (1 + 1 + 1 + 1 + 3) * batch < evaluations <= (8 + 1 + 8 + 1 + 3) * batch
