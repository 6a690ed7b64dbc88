from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill.kernels import philox
from discrete_distill.kernels.philox import philox_4x32, to_unit_interval, uniform

words = st.integers(0, 2**32 - 1)


def plain_philox(seed: int, counters: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al. 2011, figure 2, in Python's own integers."""
    c0, c1, c2, c3 = counters
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize(
    ("seed", "counters", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(seed, counters, expected):
    assert tuple(int(word) for word in philox_4x32(seed, *counters)) == expected


@given(st.integers(0, 2**64 - 1), st.tuples(words, words, words, words))
@settings(max_examples=60, deadline=None)
def test_equals_integer_arithmetic_for_ints_and_tensors(seed, counters):
    expected = plain_philox(seed, counters)
    assert tuple(int(word) for word in philox_4x32(seed, *counters)) == expected
    signed = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
    tensors = [torch.tensor([counter]) for counter in counters]
    assert tuple(int(word) for word in philox_4x32(signed, *tensors)) == expected


def test_counters_broadcast_and_do_not_depend_on_the_split():
    rows, candidates = torch.arange(100, 130)[:, None], torch.arange(3)
    whole = torch.stack(philox_4x32(7, candidates, rows, 5, 1))
    assert whole.shape == (4, 30, 3)
    parts = torch.cat([torch.stack(philox_4x32(7, candidates, part, 5, 1)) for part in rows.split(7)], 1)
    assert torch.equal(whole, parts)
    assert torch.equal(whole[:, 4, 2], torch.stack(philox_4x32(torch.tensor([7]), 2, 104, torch.tensor(5), 1)))


def test_counters_are_taken_modulo_2_to_the_32_and_seeds_modulo_2_to_the_64():
    assert philox_4x32(-1, 0, 3, 0, 0)[0] == philox_4x32(2**64 - 1, 0, 3 + 2**32, 0, 0)[0]


def test_streams_are_distinct_numbers_below_the_users():
    streams = [value for name, value in vars(philox).items() if name.startswith("STREAM_")]
    assert len(set(streams)) == len(streams)
    assert max(streams) == philox.STREAM_USER


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_are_strictly_inside_the_interval_at_both_ends(dtype):
    ends = to_unit_interval(torch.tensor([0, 2**32 - 1]), dtype)
    assert 0 < ends[0] < 1e-6
    assert 1 - 1e-6 < ends[1] < 1
    assert ends.dtype == dtype
    assert ends[0] + ends[1] == 1  # symmetric, hence mean 1/2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_have_the_moments_of_the_uniform_distribution_and_words_are_uncorrelated(dtype):
    rows, n = torch.arange(200_000), 200_000
    u = torch.stack([uniform(3, row=rows, word=word, dtype=dtype).double() for word in range(4)])
    assert (u.mean(1) - 0.5).abs().max() < 4 / math.sqrt(12 * n)
    assert (u.square().mean(1) - 1 / 3).abs().max() < 4 * math.sqrt(4 / 45 / n)
    assert (torch.corrcoef(u) - torch.eye(4)).abs().max() < 4 / math.sqrt(n)
    neighbours = torch.corrcoef(torch.stack([u[0, :-1], u[0, 1:]]))[0, 1]
    assert neighbours.abs() < 4 / math.sqrt(n)


def test_changing_one_counter_bit_changes_half_of_the_output_bits():
    base = torch.stack(philox_4x32(1, 0, torch.arange(500), 0, 0))
    flipped = torch.stack(philox_4x32(1, 0, torch.arange(500), 1, 0))
    changed = sum(((base ^ flipped) >> bit) & 1 for bit in range(32)).double().mean() / 32
    assert abs(changed - 0.5) < 4 * 0.5 / math.sqrt(4 * 500 * 32)


def test_errors_name_the_value_and_the_remedy():
    with pytest.raises(TypeError, match=r"row is a tensor of torch.float32.*int64"):
        philox_4x32(0, 0, torch.zeros(1), 0, 0)
    with pytest.raises(TypeError, match=r"step is 0.5"):
        philox_4x32(0, 0, 0, 0.5, 0)
    with pytest.raises(ValueError, match=r"seed has shape \(2,\)"):
        philox_4x32(torch.zeros(2, dtype=torch.int64), 0, 0, 0, 0)
    with pytest.raises(ValueError, match="word is 4"):
        uniform(0, row=0, word=4)
    with pytest.raises(ValueError, match=r"dtype is torch.bfloat16"):
        uniform(0, row=0, dtype=torch.bfloat16)
