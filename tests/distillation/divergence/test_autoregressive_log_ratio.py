"""The log-ratio of autoregressive networks is that of whole samples, and its gradient that of the KL divergence."""

import pytest
import torch
from enumerated_paths import random_distribution
from torch import Tensor, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, as_denoiser, exact, make_networks
from discrete_distill.distillation.divergence import AutoregressiveLogRatio, ScoreFunctionIntegralKL
from discrete_distill.distillation.methods import AutoregressiveRatio, CorruptionByParts, TokenCredit
from discrete_distill.distillation.networks import Networks, SharedBase
from discrete_distill.models import DiT, DiTConfig

K, LENGTH, MASK = 3, 3, 3
PROCESS = MaskedDiffusion(MASK)
STUDENT, TARGET = random_distribution(K, LENGTH, 0).double(), random_distribution(K, LENGTH, 1).double()
SAMPLES = exact.enumerate_sequences(K, LENGTH)


class ChainRule(nn.Module):
    """The conditionals ``p(x_i | x_<i)`` of a table of probabilities ``[K, K, K]``."""

    block_length = 1

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.marginals = [table.sum(tuple(range(i + 1, LENGTH))) if i + 1 < LENGTH else table for i in range(LENGTH)]

    def paired_features(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        assert bool((x_t == MASK).any())
        rows = [
            torch.stack([self.marginals[i][tuple(row[:i].tolist())].log() for i in range(LENGTH)]).log_softmax(-1)
            for row in x_0
        ]
        return torch.nn.functional.pad(torch.stack(rows), (0, 1))

    def project(self, features: Tensor) -> Tensor:
        return features


def log_ratio() -> AutoregressiveLogRatio:
    return AutoregressiveLogRatio(PROCESS, ChainRule(STUDENT), ChainRule(TARGET))


def test_the_sum_is_the_log_ratio_of_every_sample() -> None:
    out = log_ratio()(torch.full_like(SAMPLES, MASK), torch.ones(len(SAMPLES)), x_0=SAMPLES)
    expected = (STUDENT.flatten() / TARGET.flatten()).log()
    torch.testing.assert_close(out.per_sequence, expected, atol=1e-10, rtol=1e-10)
    first = (STUDENT.sum((1, 2)) / TARGET.sum((1, 2))).log()[SAMPLES[:, 0]]
    torch.testing.assert_close(out.per_position[:, 0], first, atol=1e-10, rtol=1e-10)


def test_given_a_prompt_it_is_that_of_the_conditional_distributions() -> None:
    generated = torch.tensor([False, True, True]).expand_as(SAMPLES)
    x_t = SAMPLES.masked_fill(generated, MASK)
    out = log_ratio()(x_t, torch.ones(len(SAMPLES)), x_0=SAMPLES, generation_mask=generated)
    conditional = [table / table.sum((1, 2), keepdim=True) for table in (STUDENT, TARGET)]
    expected = (conditional[0].flatten() / conditional[1].flatten()).log()
    torch.testing.assert_close(out.per_sequence, expected, atol=1e-10, rtol=1e-10)
    assert not bool(out.per_position[:, 0].any())


@pytest.mark.parametrize("credit", [{}, {"credit": "token", "window": 2, "window_before": 0}, {"credit": "token"}])
def test_the_expected_gradient_is_that_of_the_divergence_from_the_target(credit: dict) -> None:
    """Of a student with independent tokens, over all its samples, with the auxiliary at its optimum: a token bears on
    nothing before it, and on all that is behind it."""
    logits_LK = torch.randn(LENGTH, K, generator=torch.Generator().manual_seed(2), dtype=torch.double).requires_grad_()
    log_probs_BL = logits_LK.log_softmax(-1)[torch.arange(LENGTH), SAMPLES]
    q = log_probs_BL.sum(1).exp()
    estimator = ScoreFunctionIntegralKL(
        PROCESS,
        AutoregressiveLogRatio(PROCESS, ChainRule(q.detach().view(K, K, K)), ChainRule(TARGET)),
        by="parts",
        corruptions=1,
        baseline="none",
        **credit,
    )
    scores = estimator.score(SAMPLES)
    advantages = estimator.advantages([scores])[0].view(len(SAMPLES), -1)
    surrogates = -(advantages * (log_probs_BL if credit else log_probs_BL.sum(1, keepdim=True))).sum(1)
    got = torch.autograd.grad((q.detach() * surrogates).sum(), logits_LK, retain_graph=True)[0]
    divergence = (q * (q / TARGET.flatten()).log()).sum()
    expected = torch.autograd.grad(divergence, logits_LK)[0]
    if not credit or "window" in credit:
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)
    else:  # Without what is behind it, only the last token has its whole gradient.
        torch.testing.assert_close(got[-1], expected[-1], atol=1e-10, rtol=1e-8)
        assert float((got[0] - expected[0]).abs().max()) > 0.01


SHAPE = {"vocab_size": 8, "max_length": 12, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "cond_size": 8}


def dit(block_length: int | None = None) -> DiT:
    made = DiT(DiTConfig(**SHAPE, block_length=block_length))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=8, max_position_embeddings=12, initializer_range=0.3, **size)
    )
    return as_denoiser(model.eval(), attention="full", shifted=True, block_length=1)


@pytest.mark.parametrize("kind", ["dit", "llama"])
def test_didi_instruct_learns_the_distribution_of_its_target(kind: str, seeded) -> None:
    """The auxiliary, a copy of the target, is fitted to the student; padding changes no ratio."""
    process, target = MaskedDiffusion(7), dit(1) if kind == "dit" else llama()
    config = DiDiInstructConfig.autoregressive(advantages={"group_size": 3}, log_ratio={"warmup": 0})
    networks = make_networks(dit(), target=target)
    assert set(networks.trained()) == {"student", "auxiliary"}
    with torch.no_grad():
        for parameter in networks.auxiliary.parameters():
            parameter += 0.1  # As long as it is its target, there is no reward.
    method = DiDiInstruct(networks, process, config)
    real = torch.arange(10) < torch.tensor([[10]] * 3 + [[7]] * 3)
    x_init = torch.full((6, 10), 7)
    x_init[:, :2] = torch.tensor([1, 4])
    rollout = method.rollout(x_init=x_init, attention_mask=real, generator=seeded(0))
    for name in ("student", "auxiliary"):
        out = method.loss(name, rollout, reference=torch.zeros(6, 10, dtype=torch.long), generator=seeded(1))
        out.loss.backward()
        weights = networks.trainable_parameters()[name]
        assert any(each.grad is not None and bool(each.grad.any()) for each in weights)
    # The loss of the auxiliary is the likelihood of the samples by the chain rule, in passes of one row and no padding.
    nats = 0.0
    for row in range(6):
        x_0 = rollout.sequences[row, real[row]][None]
        features = networks.auxiliary.paired_features(x_0.masked_fill(torch.arange(x_0.shape[1]) > 1, 7), x_0)
        log_probs = process.masked_log_probs(networks.auxiliary.project(features)[0])
        nats -= float(log_probs.gather(1, x_0[0, :, None])[2:].sum().detach())
    counted = int(rollout.loss_mask.sum())
    assert float(method.loss("auxiliary", rollout, generator=seeded(1)).loss) == pytest.approx(nats / counted, rel=1e-4)


def test_low_rank_copies_stand_on_the_target_itself() -> None:
    pytest.importorskip("peft")
    target = dit(1)
    networks = make_networks(dit(), target=target, sharing=SharedBase(rank=1))
    held = {parameter.data_ptr() for parameter in target.parameters()}
    assert held <= {parameter.data_ptr() for parameter in networks.auxiliary.parameters()}


def test_what_is_not_autoregressive_is_refused() -> None:
    process, config = MaskedDiffusion(7), DiDiInstructConfig.autoregressive()
    with pytest.raises(ValueError, match=r"target.*block_length = 1.*DiT reads by blocks of 4"):
        DiDiInstruct(make_networks(dit(), target=dit(4)), process, config)
    with pytest.raises(ValueError, match=r"block_length = 1.*DiT attends both ways"):
        DiDiInstruct(make_networks(dit(), target=dit()), process, config)
    with pytest.raises(ValueError, match="needs a target"):
        DiDiInstruct(make_networks(dit()), process, config)
    with pytest.raises(ValueError, match="leave the target out"):
        DiDiInstruct(Networks(dit(4), dit(4), auxiliary=dit(1), target=dit(1)), process, config)
    with pytest.raises(ValueError, match=r"CorruptionByParts\(num_parts=1\)"):
        DiDiInstructConfig.recommended(log_ratio=AutoregressiveRatio(), credit=TokenCredit())
    with pytest.raises(ValueError, match=r"CorruptionByParts\(num_parts=1\)"):
        DiDiInstructConfig.autoregressive(credit={"corruption": CorruptionByParts(num_parts=2)})
    with pytest.raises(ValueError, match="pass x_0="):
        log_ratio()(SAMPLES, torch.ones(len(SAMPLES)))
