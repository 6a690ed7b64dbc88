from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill.evaluation import before_end

EOS = 0


def belongs_to_text(row: list[int]) -> list[bool]:
    ended, log_ratio_output = False, []
    for position, token in enumerate(row):
        log_ratio_output.append(not ended)
        ended = ended or (token == EOS and position > 0)
    return log_ratio_output


@settings(deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1)))
def test_text_ends_with_its_first_end_token_after_the_start(rows: list[list[int]]) -> None:
    assert before_end(torch.tensor(rows), EOS).tolist() == [belongs_to_text(row) for row in rows]


def test_without_an_end_token_all_is_text_and_the_input_is_left_alone() -> None:
    rows = torch.tensor([[0, 0, 5]])
    assert before_end(rows, None).tolist() == [[True, True, True]]
    assert before_end(rows, EOS).tolist() == [[True, True, False]]
    assert rows.tolist() == [[0, 0, 5]]


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="3"):
        before_end(torch.zeros(shape, dtype=torch.long), 0)
