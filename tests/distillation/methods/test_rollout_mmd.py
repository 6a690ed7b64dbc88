"""MMD on student paths: what it asks for, whose gradients, and that it distils."""

from dataclasses import replace

import pytest
import torch
from chain_networks import LENGTH, PROCESS, count_calls, seeded, small_dit
from torch import Tensor

from discrete_distill import exact
from discrete_distill.distillation.divergence import token_witness
from discrete_distill.distillation.methods import FrozenFeatures, RolloutMMD, RolloutMMDConfig
from discrete_distill.distillation.methods.mmd import MMDLogRatio
from discrete_distill.distillation.networks import Networks

MMD = RolloutMMDConfig.recommended(paths={"step_conditioning": False})


def method(config: RolloutMMDConfig = MMD) -> RolloutMMD:
    return RolloutMMD(Networks(small_dit(0), small_dit(1)), PROCESS, config)


def reference(batch: int = 8) -> Tensor:
    return torch.randint(5, (batch, LENGTH), generator=seeded(9))


def test_the_loss_trains_the_student_alone_and_reads_its_samples_once() -> None:
    made = method()
    rollout = made.rollout(8, LENGTH, generator=seeded(0))
    asked = {network: count_calls(network) for network in (made.student, made.teacher)}
    made.loss("student", rollout, reference=reference()).loss.backward()
    assert asked[made.student] == []
    assert asked[made.teacher] == [8, 8]
    assert all(p.grad is None for p in made.teacher.parameters())
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in made.student.parameters())


def test_the_verdict_is_the_witness_of_the_teachers_middle_block_shared_out() -> None:
    made = method()
    rollout = made.rollout(8, LENGTH, generator=seeded(0))
    log_ratio_output = made.log_ratio.log_ratio_output(rollout, reference())
    features, zeros = FrozenFeatures(made.teacher, block=0), torch.zeros(8)
    witness = token_witness(features(rollout.sequences, zeros), features(reference(), zeros), group_size=4)
    torch.testing.assert_close(log_ratio_output.log_ratio.per_position, 2.0 * witness / LENGTH)
    torch.testing.assert_close(log_ratio_output.log_ratio.per_sequence, 2.0 * witness.mean(1))
    assert log_ratio_output.t.tolist() == [0.0] * 8


def test_features_are_those_of_the_block_on_the_unit_sphere() -> None:
    network, x, t = small_dit(1), reference(2), torch.zeros(2)
    h = network.embed(x)
    cond, rotary = network.condition(t, None), network.rotary_emb(LENGTH)
    for block in (0, 1):
        h = network.blocks[block](h, cond, rotary, None)
        torch.testing.assert_close(FrozenFeatures(network, block)(x, t), h / h.norm(dim=-1, keepdim=True))
    assert not network.blocks[0]._forward_hooks
    with pytest.raises(ValueError, match="none of them is block 2"):
        FrozenFeatures(network, 2)
    with pytest.raises(TypeError, match="Linear"):
        FrozenFeatures(torch.nn.Linear(2, 2))


def test_prompts_are_not_counted() -> None:
    made = method()
    x_init = torch.full((8, LENGTH), 5)
    x_init[:, :2] = 1
    rollout = made.rollout(x_init=x_init, generator=seeded(0))
    log_ratio_output = made.log_ratio.log_ratio_output(rollout, reference())
    assert log_ratio_output.log_ratio.per_position[:, :2].abs().sum() == 0
    assert bool((log_ratio_output.log_ratio.per_position[:, 2:] != 0).all())


def test_what_is_missing_is_named() -> None:
    made = method()
    with pytest.raises(ValueError, match="needs two whole groups"):
        made.log_ratio.log_ratio_output(made.rollout(4, LENGTH, generator=seeded(0)), reference(4))
    rollout = made.rollout(8, LENGTH, generator=seeded(0))
    for ask in (made.student_loss, lambda each: made.loss("student", each), lambda each: made.credits([each])):
        with pytest.raises(ValueError, match="pass reference="):
            ask(rollout)
    with pytest.raises(ValueError, match="'auxiliary'"):
        made.loss("auxiliary", made.rollout(8, LENGTH, generator=seeded(0)), reference=reference())


def test_the_configuration() -> None:
    assert (MMD.advantages.group_size, MMD.advantages.baseline, MMD.advantages.scale) == (4, "leave_one_out", "batch")
    plan = MMD.update_plan(discriminator=True)
    assert (plan.order, plan.reads_reference, plan.warmup) == (("student",), ("student",), 0)
    for wrong, named in (({"bandwidth": -1.0}, "-1.0"), ({"reference": "web"}, "'web'")):
        with pytest.raises(ValueError, match=named):
            RolloutMMDConfig(**wrong)


def test_the_bandwidth_reaches_the_kernel() -> None:
    made = method(replace(MMD, bandwidth=0.25))
    assert made.log_ratio.bandwidth == 0.25


def test_credits_of_parts_compare_each_part_with_its_own_reference() -> None:
    made = method()
    rollouts = [made.rollout(8, LENGTH, generator=seeded(seed)) for seed in (0, 1)]
    credits = made.credits(rollouts, references=[reference, reference])
    assert credits is not None
    for rollout, credit in zip(rollouts, credits, strict=True):
        expected = made.log_ratio.log_ratio_output(rollout, reference()).log_ratio.per_sequence
        torch.testing.assert_close(credit.scores.per_sequence, expected)
    loss = made.loss("student", rollouts[0], credit=credits[0], num_tokens=8.0 * LENGTH).loss
    assert bool(loss.isfinite())


def bigrams(x: Tensor, t: Tensor) -> Tensor:
    """One-hot pairs of a token and its successor: equal means of these are equal bigram statistics."""
    follow = torch.cat((x[:, 1:], x[:, :1]), dim=1)
    return torch.nn.functional.one_hot(5 * x + follow, 25).float()


def test_mmd_brings_the_bigrams_of_two_step_samples_towards_those_of_the_chain() -> None:
    """40 updates from random weights leave a tenth of the exact squared distance of bigram distributions, at most."""
    chain, length = exact.small_chain()
    student, config = small_dit(0), RolloutMMDConfig.recommended(paths={"num_steps": (2,), "step_conditioning": False})
    made = RolloutMMD(Networks(student, small_dit(1)), PROCESS, config, features=bigrams)
    optimiser, generator = torch.optim.AdamW(student.parameters(), lr=1e-2), seeded(0)
    x = exact.enumerate_sequences(5, length)
    target = bigrams(x, torch.zeros(1)).mean(1).T.double() @ chain.distribution(length).flatten()

    def distance() -> float:
        with torch.no_grad():
            distribution = exact.sampler_distribution(student, PROCESS, exact.uniform_times(2), length, 5)
        return float((bigrams(x, torch.zeros(1)).mean(1).T.double() @ distribution.flatten() - target).square().sum())

    before = distance()
    for _ in range(40):
        rollout = made.rollout(64, length, generator=generator)
        data = chain.sample(64, length, generator=generator)
        optimiser.zero_grad()
        made.student_loss(rollout, reference=data).loss.backward()
        optimiser.step()
    assert distance() < before / 10


def test_given_positions_need_as_many_reference_sequences() -> None:
    made, x_init = method(), torch.full((8, LENGTH), 5)
    x_init[:, 0] = 1
    rollout = made.rollout(x_init=x_init, generator=seeded(0))
    assert bool(made.log_ratio.log_ratio_output(rollout, reference(8)).log_ratio.per_sequence.isfinite().all())
    with pytest.raises(ValueError, match="12"):
        made.log_ratio.log_ratio_output(rollout, reference(12))
    whole = made.rollout(8, LENGTH, generator=seeded(0))
    assert bool(made.log_ratio.log_ratio_output(whole, reference(12)).log_ratio.per_sequence.isfinite().all())


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan")])
def test_a_kernel_without_width_is_refused(bandwidth) -> None:
    with pytest.raises(ValueError, match=str(bandwidth)):
        MMDLogRatio(FrozenFeatures(small_dit(1)), 4, bandwidth=bandwidth)
