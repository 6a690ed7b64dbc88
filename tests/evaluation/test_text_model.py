"""A denoiser as a model of text, on a language whose every probability is known; letters are tokens."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from discrete_distill import AncestralSampler, BlockwiseSampler, ConfidenceSampler, MaskedDiffusion, exact
from discrete_distill.evaluation import TextModel
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.models.capabilities import forgo

LETTERS = "abcd"
K = len(LETTERS)
PROCESS = MaskedDiffusion(K)
CHAIN = exact.random_chain(K, torch.Generator().manual_seed(0))


def encode(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text.replace(" ", "")]


def decode(ids: list[int]) -> str:
    return "".join(LETTERS[index] for index in ids)


def make(denoiser: Any = None, sampler: Any = None, **options: Any) -> TextModel:
    return TextModel(
        PROCESS,
        denoiser or CHAIN.denoiser(K),
        sampler or AncestralSampler(PROCESS, num_steps=4),
        **{"encode": encode, "decode": decode, "max_length": 8, **options},
    )


def log_prob(text: str) -> float:
    return float(CHAIN.log_prob(torch.tensor([encode(text)])))


@pytest.mark.parametrize(
    ("context", "continuation"), [("", "a"), ("abc", "d"), ("ab", "dc"), ("", "abca"), ("abcda", "bcd")]
)
def test_the_bound_of_exact_conditionals_is_the_log_likelihood(context: str, continuation: str) -> None:
    """The mean of the estimate is exact, and an estimate is within its error; one token has none."""
    expected = log_prob(context + continuation) - (log_prob(context) if context else 0.0)
    if len(continuation) == 1:
        found, _ = make(num_samples=1).log_likelihood(context, continuation)
        assert found == pytest.approx(expected, abs=1e-6)
        return
    model = [make(num_samples=32, seed=seed) for seed in range(40)]
    values = torch.tensor([each.log_likelihood(context, continuation)[0] for each in model])
    assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / 40**0.5 + 1e-6


def greedy(context: str, count: int) -> str:
    ids = encode(context) + [K] * count
    for _ in range(count):
        p = CHAIN.denoiser(K)(torch.tensor([ids]), torch.zeros(1))[0, :, :K].softmax(-1)
        place = max((i for i in range(len(ids)) if ids[i] == K), key=lambda i: float(p[i].max()))
        ids[place] = int(p[place].argmax())
    return decode(ids)[len(context) :]


def test_whether_a_continuation_is_the_greedy_one() -> None:
    for context in ("a", "bc", "dd"):
        best = greedy(context, 3)
        assert make().log_likelihood(context, best)[1]
        other = best[:-1] + next(letter for letter in LETTERS if letter != best[-1])
        assert not make().log_likelihood(context, other)[1]


def test_spaces_before_a_continuation_are_its_own_and_nothing_has_probability_one() -> None:
    assert make().log_likelihood("ab ", "c") == make().log_likelihood("ab", " c")
    assert make().log_likelihood("ab", "") == (0.0, True)


def test_a_long_text_is_priced_once_a_token_and_the_last_window_has_context() -> None:
    text = "abcdbacddcba"  # windows of 5: abcdb, acddc, and ba behind ddc
    expected = log_prob("abcdb") + log_prob("acddc") + log_prob("ddcba") - log_prob("ddc")
    values = torch.tensor(
        [make(max_length=5, num_samples=32, seed=seed).rolling_log_likelihood(text) for seed in range(40)]
    )
    assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / 40**0.5
    assert make().rolling_log_likelihood("") == 0.0


@pytest.mark.parametrize("sampler", [AncestralSampler(PROCESS, num_steps=3), ConfidenceSampler(PROCESS, num_steps=2)])
def test_results_do_not_depend_on_the_batch(sampler: Any) -> None:
    prompts = ["a", "bc", "d", "", "ab", "cd", "a"]
    found = [
        (
            make(sampler=sampler, batch_size=size).complete(prompts, max_new_tokens=4),
            make(batch_size=size).log_likelihood("ab", "cda"),
            make(batch_size=size).rolling_log_likelihood("abcdabcd"),
        )
        for size in (1, 2, 3, 100)
    ]
    assert found == [found[0]] * 4
    assert all(len(each) == 4 for each in found[0][0])
    assert found[0][0][0] != found[0][0][6]  # Two samples of one prompt.


def test_completions_are_distributed_as_the_language() -> None:
    """One token a step: behind ``a`` two tokens have the chain's conditional probability."""
    sampler = ConfidenceSampler(PROCESS, num_steps=2, order="entropy")
    drawn = make(sampler=sampler, batch_size=5000).complete(["a"] * 5000, max_new_tokens=2)
    for pair in {*drawn}:
        expected = torch.tensor(log_prob("a" + pair) - log_prob("a")).exp().item()
        assert abs(drawn.count(pair) / 5000 - expected) < 5 * (expected * (1 - expected) / 5000) ** 0.5 + 1e-9


class Recorded:
    """A denoiser that says what follows, and keeps what it was given."""

    def __init__(self, text: str) -> None:
        self.ids, self.seen = encode(text), []  # type: ignore[var-annotated]

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.seen.append(x_t)
        shown = torch.tensor(self.ids)[torch.arange(x_t.shape[1]) % len(self.ids)]
        return 50.0 * torch.nn.functional.one_hot(shown, K + 1).float().expand(len(x_t), -1, -1)


def test_a_completion_ends_at_stop_strings_and_at_the_end_of_text() -> None:
    model = make(Recorded("abcdabcd"))
    stops = [[], ["cd"], ["da", "bc"], ["", "x"]]
    assert model.complete([""] * 4, max_new_tokens=8, stop=stops) == ["abcdabcd", "ab", "a", "abcdabcd"]
    assert model.complete(["", "a"], max_new_tokens=[2, 3]) == ["ab", "bcd"]
    assert make(Recorded("abcd"), eos_token_id=3).complete([""], max_new_tokens=8) == ["abc"]


def test_networks_are_given_the_frame_and_the_end_of_a_long_context() -> None:
    denoiser = Recorded("abcd")
    model = make(denoiser, prefix=(3,), suffix=(2, 2))
    model.complete(["abcdab"], max_new_tokens=3)
    assert denoiser.seen[0].tolist() == [[3, 0, 1, K, K, K, 2, 2]]
    denoiser.seen.clear()
    model.log_likelihood("abcdab", "d")
    assert denoiser.seen[0].tolist() == [[3, 2, 3, 0, 1, K, 2, 2]]
    denoiser.seen.clear()
    model.rolling_log_likelihood("abcdab")
    assert {tuple(row[:1].tolist() + row[-2:].tolist()) for each in denoiser.seen for row in each} == {(3, 2, 2)}
    assert [each.shape[1] for each in denoiser.seen][-1] == 8


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="9"):
        make().complete(["a"], max_new_tokens=9)
    with pytest.raises(ValueError, match="9"):
        make().log_likelihood("", "abcdabcda")
    with pytest.raises(ValueError, match="max_length"):
        make(prefix=(0,) * 8)
    with pytest.raises(ValueError, match="2 prompts"):
        make().complete(["a", "b"], max_new_tokens=[1])
    for name in ("max_length", "num_samples", "batch_size"):
        with pytest.raises(ValueError, match=name):
            make(**{name: 0})
    with pytest.raises(TypeError, match="new tokens"):
        make().complete(["a"], max_new_tokens=[1.5])  # type: ignore[list-item]


def in_blocks(block_length: int) -> DiT:
    shape = {"vocab_size": K + 1, "max_length": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "cond_size": 4}
    network = DiT(DiTConfig(**shape, block_length=block_length)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.normal_(std=0.4, generator=torch.Generator().manual_seed(number))
    return network


@torch.no_grad()
def block_log_probs(network: DiT, ids: list[int], hidden: set[int], end: int) -> Tensor:
    """Of a block that ends before ``end``, in a pass of its own, log-probabilities ``[end, K]``."""
    x = torch.tensor([[K if place in hidden else each for place, each in enumerate(ids[:end])]])
    return network(x, torch.zeros(1))[0, :, :K].log_softmax(-1)


def enumerated(network: DiT, ids: list[int], start: int) -> float:
    """The bound of what stands from ``start`` on: over blocks, and over sets of masks in each of them."""
    total = 0.0
    for low in range(0, len(ids), network.block_length or len(ids)):
        end = min(low + (network.block_length or len(ids)), len(ids))
        places = [place for place in range(low, end) if place >= start]
        for size in range(1, len(places) + 1):
            weight = 1.0 / (size * math.comb(len(places), size))
            for hidden in itertools.combinations(places, size):
                log_probs = block_log_probs(network, ids, set(hidden), end)
                total += weight * sum(float(log_probs[place, ids[place]]) for place in hidden)
    return total


@pytest.mark.parametrize(("context", "continuation"), [("abc", "dab"), ("", "badac"), ("ab", "c")])
def test_a_network_that_reads_single_tokens_has_its_exact_likelihood(context: str, continuation: str) -> None:
    network, ids = in_blocks(1), encode(context + continuation)
    expected = 0.0
    for place in range(len(context), len(ids)):
        expected += float(block_log_probs(network, ids, {place}, place + 1)[place, ids[place]])
    model = make(network, num_samples=3)
    assert model.log_likelihood(context, continuation)[0] == pytest.approx(expected, abs=1e-5)
    if not context:
        assert model.rolling_log_likelihood(continuation) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("context", "continuation"), [("abc", "dabc"), ("", "badac")])
def test_the_bound_in_blocks_is_that_of_all_their_masks(context: str, continuation: str) -> None:
    network = in_blocks(2)
    models = [make(network, num_samples=32, batch_size=7, seed=seed) for seed in range(40)]
    values = torch.tensor([each.log_likelihood(context, continuation)[0] for each in models])
    expected = enumerated(network, encode(context + continuation), len(context))
    assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / 40**0.5
    assert models[0].log_likelihood(context, continuation) == models[0].log_likelihood(context, continuation)


def test_completions_of_a_network_that_reads_by_blocks_are_drawn_on_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    network, whole = in_blocks(2), []
    sampler = AncestralSampler(PROCESS, num_steps=2)
    x_init = torch.tensor([[0, 1, 2] + [K] * 4] * 3)
    in_turn = BlockwiseSampler(sampler, block_length=2, align="start")  # Without a cache.
    expected = in_turn(network, x_init=x_init, generator=torch.Generator().manual_seed(0)).sequences[:, 3:]
    monkeypatch.setattr(network, "features", lambda *inputs, **given: whole.append(inputs))
    drawn = make(network, sampler).complete(["abc"] * 3, max_new_tokens=4)
    assert not whole
    assert drawn == [decode(row) for row in expected.tolist()]


def test_a_network_that_reads_by_blocks_and_has_no_cache_is_drawn_from_in_blocks_too() -> None:
    network, without = in_blocks(2), in_blocks(2)
    forgo(without, "prefill", "block_features", "denoise", "commit")
    answers = [
        (model.complete(["abc"] * 3, max_new_tokens=4), model.log_likelihood("abc", "dab"))
        for model in (make(each, AncestralSampler(PROCESS, num_steps=2)) for each in (network, without))
    ]
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] == pytest.approx(answers[1][1])


def test_the_greedy_continuation_of_a_network_that_reads_by_blocks() -> None:
    network = in_blocks(2)
    ids = encode("abc")
    for low in (3, 4, 6):  # The rest of the second block, and the two behind it.
        end = low + 1 if low == 3 else low + 2
        hidden, ids = set(range(low, end)), ids + [K] * (end - low)
        while hidden:
            log_probs = block_log_probs(network, ids, hidden, end)
            place = max(hidden, key=lambda each: float(log_probs[each].max()))
            ids[place] = int(log_probs[place].argmax())
            hidden -= {place}
    best = decode(ids[3:])
    assert make(network).log_likelihood("abc", best)[1]
    assert not make(network).log_likelihood("abc", best[:-1] + next(each for each in LETTERS if each != best[-1]))[1]
