import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laboratory import all_tokens, random_distribution

from discrete_distill import exact
from discrete_distill.exact.enumeration import masked_states, with_mask_at, with_mask_last


@pytest.mark.parametrize(("vocab_size", "length"), [(1, 3), (2, 1), (3, 4), (5, 2)])
def test_sequences_are_all_there_in_order(vocab_size, length):
    expected = list(itertools.product(range(vocab_size), repeat=length))
    assert [tuple(row) for row in exact.enumerate_sequences(vocab_size, length).tolist()] == expected


def test_look_up_reads_the_flat_order():
    distribution = random_distribution(3, 4, 0)
    assert torch.equal(exact.look_up(distribution, exact.enumerate_sequences(3, 4)), distribution.flatten())


@pytest.mark.parametrize("mask", range(4))
def test_mask_order_round_trips_and_moves_only_the_mask(mask):
    table = random_distribution(4, 3, 0)
    moved = with_mask_at(table, mask)
    assert torch.equal(with_mask_last(moved, mask), table)
    assert moved[mask, mask, mask] == table[3, 3, 3]
    words = exact.tokens_of_words(torch.tensor([[0, 1, 2]]), mask)
    assert exact.look_up(moved, words) == table[0, 1, 2]


def test_masked_states_have_one_row_for_each_mask():
    space = masked_states(2, 3)
    assert len(space.states) == 3**3 - 2**3
    assert torch.equal(all_tokens(3, 3)[space.flat], space.states)
    rows = space.row_of[space.row_of >= 0]
    assert rows.sort().values.tolist() == list(range(space.num_rows))
    for pattern in space.patterns:
        first = space.states[(space.row_of[space.flat] == pattern.row_start).any(1)][0]
        assert tuple((first == 2).nonzero().flatten().tolist()) == pattern.masked


@given(st.integers(0, 5), st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_words_and_tokens_round_trip_around_the_mask(mask, words):
    tokens = exact.tokens_of_words(torch.tensor([words]), mask)
    assert not bool((tokens == mask).any())
    assert exact.words_of_tokens(tokens, mask).tolist() == [words]


def test_a_mask_is_no_word():
    with pytest.raises(ValueError, match=r"\b1\b"):
        exact.words_of_tokens(torch.tensor([0, 1]), 1)


def test_too_much_is_refused_with_its_size_and_the_remedy():
    with pytest.raises(ValueError, match=r"50\^12.*MarkovChain\.log_prob"):
        exact.enumerate_sequences(50, 12)
    with pytest.raises(ValueError, match=r"\b0\b"):
        exact.enumerate_sequences(3, 0)


def test_tables_and_sequences_must_fit():
    with pytest.raises(ValueError, match="reshape"):
        exact.look_up(torch.ones(2, 3), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\b2\b.*\b3\b"):
        exact.look_up(torch.ones(3, 3), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\b3\b"):
        exact.look_up(torch.ones(3, 3), torch.tensor([[0, 3]]))
