"""The mixture of chains against its own enumeration."""

import pytest
import torch

from discrete_distill import MaskedDiffusion, exact

LENGTH, WORDS = 3, 4


@pytest.fixture(scope="module", params=[0, 2, WORDS])
def mask(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def mixture() -> exact.MarkovMixture:
    return exact.modal_mixture(3, WORDS, seed=1, concentration=0.3)


def test_its_denoiser_is_that_of_its_enumerated_distribution(mixture: exact.MarkovMixture, mask: int) -> None:
    distribution = mixture.distribution(LENGTH)
    torch.testing.assert_close(distribution.sum(), torch.ones((), dtype=torch.float64))
    states = exact.enumerate_sequences(WORDS + 1, LENGTH)
    possible = mixture.log_joint(states, mask).isfinite().any(1)
    ours = mixture.denoiser(mask)(states[possible]).exp()
    enumerated = exact.DistributionDenoiser(distribution, mask)(states[possible], torch.ones(int(possible.sum()))).exp()
    torch.testing.assert_close(ours, enumerated.double(), atol=1e-6, rtol=1e-6)


def test_evidence_that_no_mode_explains_is_refused_or_answered_uniformly() -> None:
    one = torch.eye(WORDS, dtype=torch.float64)
    chains = [exact.MarkovChain(torch.full((WORDS,), 1.0 / WORDS), one)] * 2
    mixture = exact.MarkovMixture(torch.tensor([0.5, 0.5]), chains)
    impossible = torch.tensor([[0, 1, WORDS]])
    with pytest.raises(ValueError, match="row 0"):
        mixture.denoiser(WORDS)(impossible)
    answer = mixture.denoiser(WORDS, impossible="uniform")(impossible).exp()
    torch.testing.assert_close(answer[0, 2, :WORDS], torch.full((WORDS,), 1.0 / WORDS, dtype=torch.float64))


def test_mode_masses_are_the_weights_under_its_own_distribution_and_follow_a_mode(mixture: exact.MarkovMixture) -> None:
    torch.testing.assert_close(mixture.mode_mass(mixture.distribution(LENGTH)), mixture.weights)
    peaked = exact.modal_mixture(3, WORDS, seed=1, concentration=0.02)
    masses = peaked.mode_mass(peaked.chains[1].distribution(6))
    assert float(masses[1]) > 0.95
    assert float(masses.sum()) == pytest.approx(1.0)


def test_samples_follow_the_distribution(mixture: exact.MarkovMixture, seeded) -> None:
    count = 40_000
    distribution = mixture.distribution(2).flatten()
    drawn = mixture.sample(count, 2, generator=seeded(0))
    counts = torch.bincount(drawn[:, 0] * WORDS + drawn[:, 1], minlength=WORDS**2).double()
    live = distribution > 0
    assert float(counts[~live].sum()) == 0.0
    statistic = float(((counts - count * distribution)[live].square() / (count * distribution[live])).sum())
    scipy_stats = pytest.importorskip("scipy.stats", reason="the chi-square distribution is scipy's")
    assert scipy_stats.chi2.sf(statistic, int(live.sum()) - 1) > 0.001


def test_the_standard_mixture_has_modes_that_a_sequence_names() -> None:
    mixture = exact.modal_mixture()
    distribution = mixture.distribution(6)
    joint = torch.stack([chain.distribution(6) for chain in mixture.chains]) * mixture.weights.view(-1, *[1] * 6)
    assert float(joint.amax(0).sum()) > 0.99
    # One step draws every position apart: it confuses the modes, and its reverse KL says so.
    process = MaskedDiffusion(mixture.vocab_size)
    one_step = exact.sampler_distribution(
        mixture.denoiser(mixture.vocab_size, impossible="uniform"),
        process,
        exact.uniform_times(1),
        6,
        mixture.vocab_size,
        time_dependent=False,
    )
    assert float(exact.kl(distribution, one_step)) > 2.0


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.0, 0.0], [1.0]])
def test_weights_are_checked(weights: list[float]) -> None:
    chain = exact.small_chain().chain
    with pytest.raises(ValueError, match="weight"):
        exact.MarkovMixture(torch.tensor(weights), [chain, chain])
