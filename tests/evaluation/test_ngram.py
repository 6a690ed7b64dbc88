"""The n-gram judge against Witten-Bell by hand, and as a distribution that sums to one."""

from collections import Counter

import pytest
import torch

from discrete_distill.evaluation import NGramJudge, generative_perplexity


def plainly(text: list[list[int]], history: tuple[int, ...], token: int, size: int) -> float:
    """Witten-Bell, recursively."""
    if history == (None,):
        return 1.0 / size
    n = len(history) + 1
    grams = Counter(tuple(row[i : i + n]) for row in text for i in range(len(row) - n + 1))
    after = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == history}
    lower = plainly(text, history[1:] if history else (None,), token, size)
    total = sum(after.values()) + len(after)
    return lower if not total else (after.get(token, 0) + len(after) * lower) / total


def test_prices_are_those_of_witten_bell(seeded) -> None:
    text = torch.randint(3, (4, 9), generator=seeded(0))
    text[text == 2] = torch.where(torch.rand(4, 9, generator=seeded(1)) < 0.5, 2, 0)[text == 2]
    judge = NGramJudge(text, vocab_size=4, order=3, excluded=(3,))
    sample = torch.tensor([[0, 1, 2, 0, 0, 1]])
    nats = judge.token_nats(sample).nats[0]
    for i in range(1, 6):
        history = tuple(sample[0, max(0, i - 2) : i].tolist())
        p = plainly(text.tolist(), history, int(sample[0, i]), 3)
        assert float(nats[i]) == pytest.approx(-torch.tensor(p).log().item(), abs=1e-5)
    for history in torch.cartesian_prod(torch.arange(3), torch.arange(3)):
        continuations = torch.cat([history.expand(4, 2), torch.arange(4)[:, None]], dim=1)
        probabilities = (-judge.token_nats(continuations).nats[:, 2].double()).exp()
        assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-6)
        assert float(probabilities[3]) == 0.0


def test_it_prefers_its_own_language_and_stops_at_the_end(seeded) -> None:
    text = torch.arange(60).remainder(5).view(6, 10)
    judge = NGramJudge(text, vocab_size=7, order=2, eos_token_id=5, excluded=(6,))
    own = generative_perplexity(text, judge)
    other = generative_perplexity(torch.randint(5, (6, 10), generator=seeded(0)), judge)
    assert own.perplexity < 1.5 < other.perplexity
    loss_mask = judge.token_nats(torch.tensor([[0, 1, 5, 3, 3]])).loss_mask
    assert loss_mask.tolist() == [[False, True, True, False, False]]
    assert judge.name.startswith("2-gram@")
    assert NGramJudge(text.flip(1), vocab_size=7, order=2).name != judge.name


def test_memory_does_not_grow_with_the_vocabulary(seeded) -> None:
    text = torch.randint(50_000, (4, 32), generator=seeded(0))
    few = text % 7
    wide = NGramJudge(few * 7_000, vocab_size=50_000, order=4)
    assert generative_perplexity(text, wide).perplexity > 50.0 * generative_perplexity(few * 7_000, wide).perplexity
    assert NGramJudge(text[:, :2], vocab_size=50_000, order=4).token_nats(text).nats.isfinite().all()


def test_what_cannot_be_counted_is_refused() -> None:
    text = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"order.*0"):
        NGramJudge(text, vocab_size=3, order=0)
    with pytest.raises(ValueError, match="no probability"):
        NGramJudge(text, vocab_size=3, excluded=(0,))
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.2"):
        NGramJudge(text, vocab_size=3, order=1).token_nats(text + 3)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,)])
def test_a_text_of_nothing_is_refused(shape: tuple[int, ...]) -> None:
    judge = NGramJudge(torch.zeros(1, 4, dtype=torch.long), vocab_size=3, order=1)
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        NGramJudge(torch.zeros(shape, dtype=torch.long), vocab_size=3)
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        judge.token_nats(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("wrong", [{"vocab_size": 0}, {"excluded": (3,)}, {"excluded": (-1,)}, {"excluded": (0, 1, 2)}])
def test_a_vocabulary_of_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"vocab_size|excluded|probability"):
        NGramJudge(torch.ones(1, 4, dtype=torch.long), **{"vocab_size": 3, "order": 1, **wrong})


def test_ids_of_any_integer_type_are_priced_alike() -> None:
    text = torch.arange(60).remainder(5).view(6, 10)
    judge = NGramJudge(text.to(torch.uint8), vocab_size=5, order=3)
    assert torch.equal(judge.token_nats(text.int()).nats, NGramJudge(text, vocab_size=5).token_nats(text).nats)
    with pytest.raises(TypeError, match="float32"):
        judge.token_nats(text.float())
