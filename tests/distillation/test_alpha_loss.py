"""The alpha loss: its limits, and the answer that it is best for, by enumeration."""

import pytest
import torch
from torch import Tensor, nn

from discrete_distill import MaskedDiffusion, exact, make_networks
from discrete_distill.distillation.methods import AlphaLoss, AlphaLossConfig
from discrete_distill.distillation.methods.corrupted_data import CorruptedData
from discrete_distill.distillation.networks import Networks

K, N, MASK = 3, 3, 3
PROCESS = MaskedDiffusion(MASK)


class Factorised(nn.Module):
    """One answer for the whole sequence, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.logits_LV = nn.Parameter(torch.zeros(N, K + 1, dtype=torch.double))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.logits_LV.expand(len(x_t), -1, -1)


def everything() -> CorruptedData:
    """All sequences, all masked."""
    x_0 = exact.enumerate_sequences(K, N)
    return CorruptedData(
        torch.full_like(x_0, MASK), torch.ones(len(x_0)), torch.ones_like(x_0, dtype=torch.bool), None, {}, x_0
    )


def expected_loss(method: AlphaLoss, q: Tensor) -> Tensor:
    """The loss under the distribution ``q`` of sequences; the method's own is the mean over rows."""
    whole, total = everything(), torch.zeros((), dtype=torch.double)
    for row, weight in enumerate(q):
        one = CorruptedData(
            *(each[row : row + 1] for each in (whole.x_t, whole.t, whole.loss_mask)), None, {}, whole.x_0[row : row + 1]
        )
        total = total + weight * method.student_loss(one).loss
    return total


def optimum(q: Tensor, k: float, start: Tensor) -> Tensor:
    """The factorised answer ``[N, K]`` of the fixed point, by iteration."""
    x_0, p = exact.enumerate_sequences(K, N), start
    one_hot = torch.nn.functional.one_hot(x_0, K).double()
    for _ in range(2000):
        weight = q * p[torch.arange(N), x_0].prod(1) ** (k / N)
        p = torch.einsum("s,slv->lv", weight / weight.sum(), one_hot)
    return p


def trained(q: Tensor, k: float) -> Tensor:
    student = Factorised()
    method = AlphaLoss(Networks(student, student), PROCESS, AlphaLossConfig(k=k))
    optimizer = torch.optim.LBFGS(
        student.parameters(), max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_loss(method, q)
        loss.backward()
        return loss

    optimizer.step(closure)
    return PROCESS.masked_log_probs(student.logits_LV.detach()).exp()[:, :K].double()


@pytest.mark.parametrize("k", [0.5, 1.5])
def test_of_independent_positions_the_best_answer_is_the_sharpened_marginal(k: float) -> None:
    q_NK = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.6, 0.3, 0.1]], dtype=torch.double)
    x_0 = exact.enumerate_sequences(K, N)
    closed = q_NK ** (1.0 / (1.0 - k / N))
    closed = closed / closed.sum(1, keepdim=True)
    torch.testing.assert_close(trained(q_NK[torch.arange(N), x_0].prod(1), k), closed, atol=1e-4, rtol=0)


@pytest.mark.parametrize("k", [0.5, 1.5, 6.0])
def test_of_dependent_positions_it_is_the_fixed_point(k: float) -> None:
    q = torch.rand(K**N, dtype=torch.double, generator=torch.Generator().manual_seed(1)) ** 3
    q = q / q.sum()
    found = trained(q, k)
    torch.testing.assert_close(found, optimum(q, k, found), atol=1e-4, rtol=0)


def test_as_k_goes_to_zero_it_is_the_negative_log_likelihood_of_a_position() -> None:
    student = Factorised()
    nn.init.normal_(student.logits_LV)
    rollout = everything()
    log_p = PROCESS.masked_log_probs(student.logits_LV)[torch.arange(N), rollout.x_0].mean()
    method = AlphaLoss(Networks(student, student), PROCESS, AlphaLossConfig(k=1e-5))
    torch.testing.assert_close(method.student_loss(rollout).loss, -log_p, atol=1e-4, rtol=0, check_dtype=False)


def test_each_sequence_counts_as_much_however_much_of_it_is_masked() -> None:
    x_0 = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    student = nn.Embedding(MASK + 1, MASK + 1)
    networks = Networks(nn.Module(), student)
    networks.student.forward = lambda x_t, t: student(x_t)  # type: ignore[method-assign]
    method = AlphaLoss(networks, PROCESS, AlphaLossConfig(k=2.0))
    loss_mask = torch.tensor([[True, False, False, False], [True, True, True, True]])
    rollout = CorruptedData(x_0.masked_fill(loss_mask, MASK), torch.ones(2), loss_mask, None, {}, x_0)
    log_p = PROCESS.masked_log_probs(student.weight)[MASK]
    means = torch.stack([log_p[x_0[0, :1]].mean(), log_p[x_0[1]].mean()])
    torch.testing.assert_close(method.student_loss(rollout).loss, ((1 - (2.0 * means).exp()) / 2.0).mean())


@pytest.mark.parametrize("k", [0.0, -1.0, float("nan")])
def test_a_sharpness_that_is_not_positive_is_refused(k: float) -> None:
    with pytest.raises(ValueError, match="k"):
        AlphaLossConfig(k=k)


def test_a_prompt_and_padding_are_never_masked() -> None:
    student = Factorised()
    method = AlphaLoss(make_networks(student, log_ratio=None, step_conditioning=False), PROCESS)
    reference = torch.randint(K, (32, N), generator=torch.Generator().manual_seed(0))
    x_init = torch.full_like(reference, MASK)
    x_init[:, 0] = 1
    real = torch.ones_like(reference, dtype=torch.bool)
    real[::2, -1] = False
    rollout = method.rollout(
        x_init=x_init, attention_mask=real, reference=reference, generator=torch.Generator().manual_seed(0)
    )
    assert bool((rollout.x_0[:, 0] == 1).all())
    assert not bool(rollout.loss_mask[:, 0].any())
    assert not bool(rollout.loss_mask[::2, -1].any())
    assert bool((rollout.num_masked >= 1).all())
    with pytest.raises(ValueError, match="reference"):
        method.rollout(4, N)


def test_a_prompt_without_masks_is_warned_of() -> None:
    student = Factorised()
    x_0 = exact.enumerate_sequences(K, N)
    with pytest.warns(UserWarning, match="mask_token_id"):
        AlphaLoss(Networks(student, student), PROCESS).rollout(x_init=x_0, reference=x_0)
