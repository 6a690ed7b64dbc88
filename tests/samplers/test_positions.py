"""Rows of a batch: which they are, and how they reach another device."""

import torch
from counting import seeded
from torch.utils._python_dispatch import TorchDispatchMode

from discrete_distill.samplers.positions import moved_positions, positions_at


class Copies(TorchDispatchMode):
    """Counts copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_to_copy" in str(func)
        return func(*args, **(kwargs or {}))


def planned():
    flags = torch.rand(6, 4, 5, generator=seeded(0)) < torch.linspace(0.0, 0.6, 6)[:, None, None]
    return [positions_at(each) for each in flags]


def test_rows_of_all_steps_are_moved_in_one_copy() -> None:
    positions = planned()
    assert {each.sequences is None for each in positions} == {True, False}
    with Copies() as copies:
        moved = moved_positions(positions, torch.device("meta"))
    assert copies.count == 1
    assert [each.index.shape for each in moved] == [each.index.shape for each in positions]


def test_moved_rows_are_the_same_rows() -> None:
    positions = planned()
    for before, after in zip(positions, moved_positions(positions, torch.device("cpu")), strict=True):
        assert torch.equal(before.index, after.index)
        assert torch.equal(before.compact, after.compact)
        assert (before.sequences is None) == (after.sequences is None)
        assert before.sequences is None or torch.equal(before.sequences, after.sequences)
        assert bool(before) == bool(after) == (len(before.index) > 0)
