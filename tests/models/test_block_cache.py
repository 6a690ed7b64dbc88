"""Attention by blocks and cached keys: every pass against the cache equals the pass over the whole rows."""

import pytest
import torch
from external import SIZE, TinyDream, TinyLLaDA, randomised, transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill import as_denoiser
from discrete_distill.models import BlockCache, BlockDenoiser, DiT, DiTConfig
from discrete_distill.models.capabilities import require
from discrete_distill.process import FeatureDenoiser

V, K = 12, 4
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def dit(block_length=K, max_length=32, **settings):
    config = DiTConfig(
        vocab_size=V, max_length=max_length, hidden_size=16, num_layers=2, num_heads=2, cond_size=6,
        block_length=block_length, **settings,
    )  # fmt: skip
    return randomised(DiT(config))


def llama(block_length=K, shifted=False):
    config = transformers.LlamaConfig(**SIZE, num_key_value_heads=1, max_position_embeddings=64)
    model = randomised(transformers.LlamaForCausalLM(config))
    return as_denoiser(model, attention="full", block_length=block_length, shifted=shifted)


NETWORKS = {
    "DiT": dit,
    "DiT with a bias for each pair of positions": lambda block_length=K: dit(block_length, position_bias=True),
    "Llama": llama,
    "shifted Llama": lambda block_length=K: llama(block_length, shifted=True),
}


@pytest.fixture(scope="module", params=NETWORKS)
def by_blocks(request):
    return NETWORKS[request.param]()


def dream():
    model = TinyDream()
    model.model.config.max_position_embeddings = 64
    return as_denoiser(randomised(model))


@pytest.fixture(scope="module", params=[*NETWORKS, "Dream"])
def both_ways(request):
    return dream() if request.param == "Dream" else NETWORKS[request.param](None)


def ids(*shape, seed=0):
    return torch.randint(1, V, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows, side):
    """Rows of different lengths as a batch, with random padding; and where they are real."""
    width = max(map(len, rows))
    x, real = ids(len(rows), width, seed=9), torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        x[number, place], real[number, place] = row, True
    return x, real


@torch.no_grad()
def logits_of(network, row):
    return network(row[None], torch.zeros(1))[0]


def test_a_token_reads_its_own_block_and_all_earlier_ones(by_blocks) -> None:
    """Rows that end behind a block have its logits; and every token of a block changes every logit from there on."""
    x = ids(14)
    whole = logits_of(by_blocks, x)
    for end in (4, 8, 12):
        torch.testing.assert_close(logits_of(by_blocks, x[:end]), whole[:end], **CLOSE)
    for place in range(14):
        other = x.clone()
        other[place] = x[place] % (V - 1) + 1
        moved = (logits_of(by_blocks, other) - whole).abs().amax(1) > 0
        first = place // K * K
        # A shifted model predicts the first token of a block from the block before.
        first += first > 0 and by_blocks.shifted
        assert moved.tolist() == [i >= first for i in range(14)], place


def test_one_block_is_attention_both_ways() -> None:
    x, t = ids(3, 7), torch.zeros(3)
    assert torch.equal(dit(7)(x, t), dit(None)(x, t))
    torch.testing.assert_close(llama(7)(x, t), llama(None)(x, t))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 3), st.sampled_from(["left", "right"]))
def test_cached_blocks_have_the_logits_of_the_whole_rows(by_blocks, prompt_blocks, num_blocks, side) -> None:
    """Rows at different places: prompts of whole blocks, noisy blocks behind them, each then committed."""
    prompts = [ids(K * count, seed=number) for number, count in enumerate(prompt_blocks)]
    x, real = padded(prompts, side)
    cache = by_blocks.prefill(x, attention_mask=real)
    assert cache.lengths.tolist() == [len(prompt) for prompt in prompts]
    rows = prompts
    for number in range(num_blocks):
        noisy, clean = ids(len(rows), K, seed=20 + number), ids(len(rows), K, seed=30 + number)
        logits = by_blocks.denoise(noisy, torch.zeros(len(rows)), cache)
        for row, (before, block) in enumerate(zip(rows, noisy, strict=True)):
            expected = logits_of(by_blocks, torch.cat((before, block)))[len(before) :]
            torch.testing.assert_close(logits[row], expected, **CLOSE)
        by_blocks.commit(clean, cache)
        rows = [torch.cat((before, block)) for before, block in zip(rows, clean, strict=True)]
        # Rows that are finished drop out.
        stay = [row for row in range(len(rows)) if len(rows) == 1 or row != number]
        rows, cache = [rows[row] for row in stay], cache.rows(torch.tensor(stay))
    assert cache.lengths.tolist() == [len(row) for row in rows]


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 11), min_size=1, max_size=3),
    st.integers(0, 10),
    st.integers(1, 6),
    st.sampled_from(["left", "right"]),
)
def test_a_part_read_at_once_has_the_logits_of_the_whole_rows(both_ways, lengths, start, width, side) -> None:
    """Attention both ways: while no token has changed, the keys of the others are those of the whole pass."""
    x, real = padded([ids(length, seed=length) for length in lengths], side)
    cache = both_ways.prefill(x, attention_mask=real)
    with torch.no_grad():
        whole = both_ways(x, torch.zeros(len(x)), attention_mask=real)
    starts = torch.tensor([start % length for length in lengths])
    first = real.to(torch.uint8).argmax(1)
    places = first[:, None] + starts[:, None] + torch.arange(width)
    inside = starts[:, None] + torch.arange(width) < torch.tensor(lengths)[:, None]
    places = places.clamp(max=x.shape[1] - 1)
    part = both_ways.denoise(x.gather(1, places), torch.zeros(len(x)), cache, starts=starts, attention_mask=inside)
    expected = whole.gather(1, places[..., None].expand(-1, -1, V))
    torch.testing.assert_close(part[inside], expected[inside], **CLOSE)


def gpt2(block_length, shifted=False):
    """Positions are learned: where they are counted from matters."""
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    model = randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, **size)))
    return as_denoiser(model, attention="full", block_length=block_length, shifted=shifted)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("kind", [llama, gpt2])
def test_a_padded_row_has_the_logits_of_the_row_alone(kind, shifted, side) -> None:
    """By whole passes, by passes over noisy and clean tokens and by parts alike, the first token included."""
    network, rows = kind(K, shifted), [ids(11, seed=1), ids(6, seed=2)]
    x, real = padded(rows, side)
    with torch.no_grad():
        whole = network(x, torch.zeros(2), attention_mask=real)
        apart = network.project(network.features(x, torch.zeros(2), attention_mask=real))
        paired = network.project(network.paired_features(x, x, attention_mask=real))
    for number, row in enumerate(rows):
        for logits in (whole, apart, paired):
            # Nothing stands before the first token, which is predicted as in a row of its own.
            torch.testing.assert_close(logits[number][real[number]], logits_of(network, row), **CLOSE)


def test_positions_that_the_caller_gives_are_those_of_the_model() -> None:
    network, x, real = gpt2(None), ids(1, 5), torch.tensor([[False, True, True, True, True]])
    given = torch.tensor([[0, 3, 2, 1, 0]])
    with torch.no_grad():
        counted, other = (
            network(x, torch.zeros(1), attention_mask=real, **each) for each in ({}, {"position_ids": given})
        )
    assert not torch.allclose(counted[real], other[real])


def test_positions_continue_beyond_the_length_of_training() -> None:
    short, long = dit(max_length=8), dit(max_length=20)
    x = ids(2, 20)
    cache = short.prefill(x[:, :8])
    for start in (8, 12, 16):
        block = x[:, start : start + K]
        expected = long(x[:, : start + K], torch.zeros(2))[:, start:]
        torch.testing.assert_close(short.denoise(block, torch.zeros(2), cache), expected, **CLOSE)
        short.commit(block, cache)
    with pytest.raises(ValueError, match=r"9.*8"):
        short.prefill(x[:, :9])


def test_a_bias_has_no_positions_beyond_the_length_of_training() -> None:
    network = dit(max_length=8, position_bias=True)
    x = ids(2, 8)
    with pytest.raises(ValueError, match=r"12.*8"):
        network.denoise(x[:, :K], torch.zeros(2), network.prefill(x))
    both_ways = dit(None, max_length=8, position_bias=True)
    starts, whole = torch.tensor([0, 4]), both_ways(x, torch.zeros(2))
    part = torch.stack((x[0, :K], x[1, K:]))
    again = both_ways.denoise(part, torch.zeros(2), both_ways.prefill(x), starts=starts)
    torch.testing.assert_close(again, torch.stack((whole[0, :K], whole[1, K:])), **CLOSE)
    with pytest.raises(ValueError, match=r"12.*8"):
        both_ways.denoise(x[:, :K], torch.zeros(2), both_ways.prefill(x))  # Behind the cache.


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bias_reads_as_many_positions_as_it_has_behind_prompts_of_unequal_numbers_of_blocks(side) -> None:
    """With padding there are more slots than positions."""
    network = dit(max_length=3 * K, position_bias=True)
    prompts, real = padded([ids(K, seed=1), ids(2 * K, seed=2)], side)
    cache = network.prefill(prompts, attention_mask=real)
    block = ids(2, K, seed=3)
    network.commit(block, cache, attention_mask=torch.tensor([[True], [False]]).expand(2, K))
    rows, behind = cache.rows(torch.tensor([0])), ids(1, K, seed=4)
    whole = torch.cat((prompts[0][real[0]], block[0], behind[0]))
    logits = network.denoise(behind, torch.zeros(1), rows)[0]
    torch.testing.assert_close(logits, logits_of(network, whole)[2 * K :], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_pass_over_noisy_and_clean_tokens_is_a_pass_for_each_block(by_blocks, side) -> None:
    network = by_blocks
    rows = [ids(13, seed=1), ids(6, seed=2)]
    x_0, real = padded(rows, side)
    x_t = torch.where(torch.rand(x_0.shape, generator=torch.Generator().manual_seed(3)) < 0.5, V - 1, x_0)
    logits = network.project(network.paired_features(x_t, x_0, attention_mask=real))
    for number, row in enumerate(rows):
        noisy, got = x_t[number][real[number]], logits[number][real[number]]
        for start in range(0, len(row), K):
            seen = torch.cat((row[:start], noisy[start : start + K]))
            torch.testing.assert_close(got[start : start + K], logits_of(network, seen)[start:], **CLOSE)
    with pytest.raises(ValueError, match="block_length"):
        dit(None).paired_features(x_t, x_0)


def test_memory_is_counted_and_buffers_are_not_copied_for_each_block() -> None:
    network = dit(max_length=512)
    cache = network.prefill(ids(2, 64))
    token = 2 * 2 * 16 * 4  # keys and values of two layers, 16 wide, fp32
    assert cache.nbytes >= 2 * 64 * token
    for _ in range(16):
        network.commit(ids(2, K), cache)
    assert 2 * 128 * token <= cache.nbytes <= 2 * 128 * (1.3 * token + 8 + 64)


def test_what_does_not_fit_is_refused_before_a_pass() -> None:
    network, t = dit(), torch.zeros(2)
    cache = network.prefill(ids(2, 8))
    with pytest.raises(ValueError, match=r"2 rows.*3"):
        network.denoise(ids(3, K), torch.zeros(3), cache)
    with pytest.raises(ValueError, match=r"float32.*bfloat16"):
        dit().bfloat16().denoise(ids(2, K), t, cache)
    with pytest.raises(ValueError, match="5"):
        network.denoise(ids(2, 5), t, cache)
    with pytest.raises(ValueError, match="block_length"):
        dit(None).commit(ids(2, K), dit(None).prefill(ids(2, 8)))
    for settings_of in ({"time_conditioning": True}, {"step_conditioning": True}, {"block_length": 0}):
        with pytest.raises(ValueError, match="block_length"):
            dit(**settings_of)
    with pytest.raises(ValueError, match="block_length"):
        as_denoiser(TinyDream(), block_length=4)
    assert cache.size == 8


def test_who_offers_a_cache() -> None:
    assert isinstance(dit(None), BlockDenoiser)
    assert isinstance(llama(None), BlockDenoiser)
    assert isinstance(dream(), BlockDenoiser)
    llada = as_denoiser(randomised(TinyLLaDA()))
    assert isinstance(llada, FeatureDenoiser)
    assert not isinstance(llada, BlockDenoiser)
    with pytest.raises(TypeError, match="BlockDenoiser"):
        require(lambda x, t: x, BlockDenoiser, needed_by="a test")


def test_short_blocks_are_no_reason_for_a_warning(recwarn) -> None:
    llama(2)
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


class Disobedient(transformers.LlamaForCausalLM):
    """Its call names a mask and positions, one of which it does not obey."""

    drops = ""

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False):
        if self.drops == "mask":
            attention_mask = torch.zeros_like(attention_mask)
        if self.drops == "later tokens":
            attention_mask = None
        if self.drops == "positions":
            position_ids = None
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )


@pytest.mark.parametrize("block_length", [1, 3])
@pytest.mark.parametrize(
    ("drops", "why"),
    [("mask", "a later block changes"), ("later tokens", "does not read the last"), ("positions", "noisy blocks")],
)
def test_a_model_that_does_not_read_by_blocks_as_stated_is_refused(drops, why, block_length, recwarn) -> None:
    """Trained on a pass over noisy and clean tokens, it would read what it is to predict."""
    model = randomised(Disobedient(transformers.LlamaConfig(**SIZE, max_position_embeddings=64)))
    stated = {"attention": "full", "shifted": False, "block_length": block_length}
    assert as_denoiser(model, **stated).block_length == block_length
    model.drops = drops
    # Blocks of one token read no token behind them.
    why = "noisy blocks" if block_length == 1 and drops == "later tokens" else why
    with pytest.raises(ValueError, match=rf"blocks of {block_length}.*{why}"):
        as_denoiser(model, **stated)
    assert as_denoiser(model, **stated, verify=False).block_length == block_length
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


def test_a_saved_network_keeps_its_blocks(tmp_path) -> None:
    dit().save_pretrained(tmp_path)
    loaded = DiT.from_pretrained(tmp_path)
    assert loaded.block_length == K
    x = ids(2, 9)
    assert torch.equal(loaded(x, torch.zeros(2)), dit()(x, torch.zeros(2)))
    assert isinstance(loaded.prefill(x), BlockCache)
