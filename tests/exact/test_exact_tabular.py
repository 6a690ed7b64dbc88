import pytest
import torch
from laboratory import RandomDenoiser, all_tokens, chain, seeded

from discrete_distill import exact
from discrete_distill.process import MaskedDiffusion

TIMES = [1.0, 0.6, 0.0]


@pytest.mark.parametrize("mask", [0, 1, 2])
def test_a_copied_table_answers_and_samples_like_the_original(mask):
    process, denoiser = MaskedDiffusion(mask), RandomDenoiser(2, 3, 0)
    table = exact.TabularDenoiser(3, 2, mask, TIMES).copy_from(denoiser, process)
    x_t = all_tokens(3, 3)
    for t, s in ((1.0, 0.6), (0.6, 0.0)):
        t_B, s_B = torch.full((27,), t), torch.full((27,), s)
        expected = process.log_probs(denoiser(x_t, t_B, s=s_B), x_t)
        torch.testing.assert_close(process.log_probs(table(x_t, t_B), x_t), expected)
    distributions = [exact.sampler_distribution(each, process, TIMES, 3, 2) for each in (table, denoiser)]
    torch.testing.assert_close(distributions[0], distributions[1])


def test_one_table_serves_all_times():
    markov, process = chain(2), MaskedDiffusion(2)
    table = exact.TabularDenoiser(3, 2, 2).copy_from(markov.denoiser(2), process)
    distributions = [exact.sampler_distribution(each, process, TIMES, 3, 2) for each in (table, markov.denoiser(2))]
    torch.testing.assert_close(distributions[0], distributions[1])


def test_gradient_reaches_every_row_that_the_sampler_reads():
    table = exact.TabularDenoiser(2, 2, 2, TIMES)
    process, target = MaskedDiffusion(2), chain(2).distribution(2)
    start = torch.randn(table.logits.shape, dtype=torch.float64, generator=seeded(0), requires_grad=True)

    def objective(logits):
        call = lambda x, t: torch.func.functional_call(table, {"logits": logits}, (x, t))  # noqa: E731
        return exact.kl(exact.sampler_distribution(call, process, TIMES, 2, 2), target)

    assert torch.autograd.gradcheck(objective, (start,))
    gradient = torch.autograd.grad(objective(start), start)[0]
    assert bool((gradient[1].abs().amax(1) > 0).all())
    assert int((gradient[0].abs().amax(1) > 0).sum()) == 2


def test_a_table_moves_with_the_module_and_counts_its_parameters():
    table = exact.TabularDenoiser(3, 2, 2, TIMES)
    assert [name for name, _ in table.named_parameters()] == ["logits"]
    assert table.logits.shape == (2, 3 * 3**2, 2)
    assert list(table.state_dict()) == ["logits"]


def test_bad_calls_are_refused():
    table = exact.TabularDenoiser(2, 2, 2, TIMES)
    with pytest.raises(ValueError, match=r"0\.5"):
        table(torch.tensor([[2, 2]]), torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"\b2\b.*\b3\b"):
        table(torch.tensor([[2, 2, 2]]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"\b4\b"):
        exact.TabularDenoiser(2, 2, 4)
