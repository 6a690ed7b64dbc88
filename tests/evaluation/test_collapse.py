"""Constructed collapses of a language that is known: each has the entropy of data and a better perplexity, and each is
caught; the language itself at a lower temperature is not."""

import pytest
import torch
from torch import Generator, Tensor

from discrete_distill.evaluation import (
    CausalLMJudge,
    CollapseTolerance,
    Estimate,
    Frontier,
    FrontierPoint,
    compare_at_entropy,
    generative_perplexity,
    lost_diversity,
    measure_between_samples,
    sample_entropy,
)

V, L, N = 64, 48, 64


def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


LOGITS_VV = 2.0 * torch.randn(V, V, generator=generator(0))


def draw(count: int, seed: int, temperature: float = 1.0, logits_VV: Tensor = LOGITS_VV) -> Tensor:
    """Sequences of the Markov chain whose transitions are the softmax of the logits."""
    source = generator(seed)
    probs_VV = (logits_VV / temperature).softmax(1)
    columns = [torch.randint(V, (count,), generator=source)]
    for _ in range(L - 1):
        columns.append(torch.multinomial(probs_VV[columns[-1]], 1, generator=source)[:, 0])
    return torch.stack(columns, dim=1)


class Chain(torch.nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return LOGITS_VV[input_ids]


JUDGE = CausalLMJudge(Chain(), name="chain", eos_token_id=None, context=L)
DATA, OTHER_DATA, REFERENCE = draw(N, 1), draw(256, 2), draw(N, 3)


def best_texts(count: int) -> Tensor:
    """Texts of the language with the entropy of data, among them the most likely."""
    texts = draw(2048, 4)
    typical = texts[(sample_entropy(texts) - sample_entropy(DATA).mean()).abs() < 0.05]
    nats = torch.tensor(generative_perplexity(typical, JUDGE).sample_nats)
    return typical[nats.argsort()[:count]]


def replayed(count: int) -> Tensor:
    return best_texts(count)[torch.arange(N) % count]


def one_text_with_edits() -> Tensor:
    edited = torch.rand(N, L, generator=generator(5)) < 0.04
    return torch.where(edited, draw(N, 6), replayed(1))


def few_modes() -> Tensor:
    """Each sample follows one of two chains that know three of the likelier transitions of each token."""
    parts = []
    for mode in range(2):
        preferred = (LOGITS_VV + torch.randn(V, V, generator=generator(20 + mode))).topk(3, dim=1).indices
        known = torch.zeros(V, V, dtype=torch.bool).scatter(1, preferred, True)
        parts.append(draw(N // 2, 30 + mode, 3.0, LOGITS_VV.masked_fill(~known, float("-inf"))))
    return torch.cat(parts)


COLLAPSES = {
    "one text with edits": one_text_with_edits,
    "two texts": lambda: replayed(2),
    "a small set replayed": lambda: replayed(12),
    "few modes": few_modes,
}


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_collapse_with_the_entropy_of_data_is_caught(name: str) -> None:
    samples = COLLAPSES[name]()
    assert float(sample_entropy(samples).mean()) == pytest.approx(float(sample_entropy(DATA).mean()), rel=0.04)
    assert generative_perplexity(samples, JUDGE).perplexity < generative_perplexity(DATA, JUDGE).perplexity
    figures = [measure_between_samples(each, OTHER_DATA).figures() for each in (samples, REFERENCE)]
    assert lost_diversity(*figures)


@pytest.mark.parametrize("temperature", [0.9, 1.0, 1.1])
def test_the_language_at_another_temperature_has_not_collapsed(temperature: float) -> None:
    samples = draw(N, 7, temperature)
    figures = [measure_between_samples(each, OTHER_DATA).figures() for each in (samples, REFERENCE)]
    assert lost_diversity(*figures) == ()


def test_a_difference_within_noise_is_no_loss() -> None:
    reference = {"agreement": Estimate(0.1, 0.01)}
    assert lost_diversity({"agreement": Estimate(0.3, 0.01)}, reference)
    assert not lost_diversity({"agreement": Estimate(0.3, 0.07)}, reference)
    assert not lost_diversity({"agreement": Estimate(0.15, 0.0)}, reference)
    assert lost_diversity({"agreement": Estimate(0.15, 0.0)}, reference, CollapseTolerance(agreement_factor=1.2))


def frontier(method: str, samples: Tensor, nats: float) -> Frontier:
    """Two points around one entropy, with the diversity of the samples."""
    figures = measure_between_samples(samples, OTHER_DATA).figures()
    points = tuple(
        FrontierPoint(
            temperature=temperature,
            seed=0,
            entropy=3.0 + temperature,
            corpus_entropy=4.0,
            nats_per_token=nats,
            standard_error=0.01,
            diversity=figures,
        )
        for temperature in (0.9, 1.1)
    )
    return Frontier(method=method, judge="j", precision="fp32", num_samples=N, length=L, points=points)


def test_the_comparison_of_a_collapsed_method_says_so_in_place_of_a_ratio() -> None:
    teacher, healthy = frontier("teacher", REFERENCE, 3.0), frontier("student", draw(N, 8), 2.5)
    collapsed = frontier("student", replayed(2), 2.0)
    assert not compare_at_entropy(healthy, teacher, 4.0).collapsed
    comparison = compare_at_entropy(collapsed, teacher, 4.0)
    assert comparison.collapsed
    assert {"agreement", "nearest_overlap", "reverse_nats"} <= {each.name for each in comparison.lost}
    assert "collapsed" in str(comparison)
    # The reference is what the method must keep: held against itself, the collapsed one has lost nothing.
    assert not compare_at_entropy(collapsed, teacher, 4.0, reference=collapsed).collapsed


@pytest.mark.parametrize("wrong", [{"agreement_factor": 0.5}, {"reverse_nats": -1.0}, {"errors": float("nan")}])
def test_tolerances_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        CollapseTolerance(**wrong)
