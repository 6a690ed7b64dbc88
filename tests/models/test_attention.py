"""Attention over tiles of a mask is attention under the dense mask, and few tiles are read in vain."""

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
import torch.nn.functional as F
from external import randomised
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill.models import DiT, DiTConfig, attention
from discrete_distill.models.attention_masks import noisy_and_clean, row_positions

TILE = attention.TILE
BLOCK_LENGTHS = [1, 3, 16, 130]


def rows(length, padding, side):
    """Positions of rows with so much padding each."""
    places = torch.arange(length)
    real = torch.stack([places < length - count if side == "right" else places >= count for count in padding])
    return row_positions(real)


def by_definition(positions, block_length):
    """Pair by pair: what a token of ``[x_t | x_0]`` reads."""
    twice = [row + row for row in positions.tolist()]
    length = positions.shape[1]

    def reads(p, q, i, j):
        noisy, other_noisy, block, other = i < length, j < length, p // block_length, q // block_length
        if p < 0 or q < 0:  # padding reads the padding of its half
            return p < 0 and q < 0 and noisy == other_noisy
        if noisy:
            return block == other if other_noisy else other < block
        return not other_noisy and other <= block

    return torch.tensor([[[reads(p, q, i, j) for j, q in enumerate(row)] for i, p in enumerate(row)] for row in twice])


ragged = st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.sampled_from(["left", "right"]))


@settings(max_examples=30)
@given(st.integers(1, 14), ragged, st.integers(1, 6))
def test_the_mask_is_that_of_block_diffusion(length, ragged, block_length) -> None:
    positions = rows(length, [min(count, length - 1) for count in ragged[0]], ragged[1])
    dense = noisy_and_clean(positions, block_length).dense()
    assert dense.shape == (len(positions), 1, 2 * length, 2 * length)
    assert torch.equal(dense[:, 0], by_definition(positions, block_length))


def tiles_of(mask):
    """Bool ``[B, 1, T, T]``: tiles that are read in part, and those that are read whole."""
    made = []
    for count, index in (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        table = torch.zeros(index.shape, dtype=torch.bool)
        made.append(table.scatter(-1, index.long(), torch.arange(index.shape[-1]) < count[..., None]))
    return made


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("block_length", BLOCK_LENGTHS)
@pytest.mark.parametrize("length", [1, 65, 128, 200, 384])
def test_tiles_hold_all_pairs_and_whole_ones_no_other(length, block_length, side) -> None:
    positions = rows(length, [0, length // 3, length - 1], side)
    pairs = noisy_and_clean(positions, block_length)
    part, whole = tiles_of(pairs.tiled())
    missing = -2 * length % TILE
    dense = F.pad(pairs.dense(), (0, missing, 0, missing))
    dense = dense.unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE)).transpose(3, 4)
    some, every = dense.flatten(4).any(4), dense.flatten(4).all(4)
    assert not (part & whole).any()
    assert (part | whole)[some].all()
    assert every[whole].all()
    if length % TILE == 0:  # Of a row without padding no tile is read in vain, and none is taken apart.
        assert torch.equal((part | whole)[0], some[0])
        if TILE % block_length == 0 and block_length < TILE:
            assert torch.equal(whole[0], every[0])


def test_a_quarter_to_a_half_of_the_tiles_are_read() -> None:
    part, whole = tiles_of(noisy_and_clean(rows(2048, [0], "left"), 16).tiled())
    # On the diagonals: of noisy tokens, of noisy and clean ones, of clean ones. Below the latter two whole tiles.
    assert (int(part.sum()), int(whole.sum())) == (3 * 16, 2 * 16 * 15 // 2)
    assert int((part | whole).sum()) / part.numel() < 0.3


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("block_length", BLOCK_LENGTHS)
@pytest.mark.parametrize("length", [40, 128, 150])
def test_flex_attention_is_attention_under_the_dense_mask(length, block_length, side, monkeypatch) -> None:
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)  # which refuses gradients on a CPU
    monkeypatch.setattr(attention, "flex", lambda: torch_flex.flex_attention)
    pairs = noisy_and_clean(rows(length, [0, 7, length - 1], side), block_length)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 2, 2 * length, 8, generator=generator, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(inputs[0].shape, generator=generator)
    outs = [attention.attend(*inputs, mask) for mask in (pairs.dense(), pairs.tiled())]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in outs]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_network_over_tiles_is_the_network_over_the_mask(monkeypatch) -> None:
    """The pass over noisy and clean tokens of ragged rows, with its gradients."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(attention, "flex", lambda: torch_flex.flex_attention)
    config = DiTConfig(
        vocab_size=9, max_length=64, hidden_size=16, num_layers=2, num_heads=2, cond_size=6, block_length=4
    )
    network = randomised(DiT(config))
    generator = torch.Generator().manual_seed(0)
    x_t, x_0 = torch.randint(9, (2, 3, 50), generator=generator)
    real = rows(50, [0, 11, 3], "left") >= 0
    results = []
    for tiled in (False, True):
        monkeypatch.setattr(type(network), "pays_in_tiles", lambda *_, tiled=tiled: tiled)
        network.zero_grad()
        features = network.paired_features(x_t, x_0, attention_mask=real)
        features[real].square().sum().backward()
        results.append([features[real], *(each.grad for each in network.parameters() if each.grad is not None)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_tiles_are_for_long_passes_on_a_gpu() -> None:
    class Cuda:
        is_cuda = True

        def __init__(self, length) -> None:
            self.shape = (2, length)

    assert attention.pays_in_tiles(Cuda(1024), 64)
    assert not attention.pays_in_tiles(Cuda(1024), 8)  # FlexAttention compiles no head so narrow
    assert not attention.pays_in_tiles(Cuda(256), 64)
    assert not attention.pays_in_tiles(torch.zeros(2, 1024), 64)
