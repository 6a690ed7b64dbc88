"""The method: whose gradients, how many evaluations, what every setting does, and that it distils."""

from dataclasses import replace

import pytest
import torch
from chain_networks import LENGTH, PROCESS, ChainAndMore, count_calls, seeded, small_dit, small_method
from torch import Tensor, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, Discriminator, exact, token_divergence
from discrete_distill.distillation.divergence import ScoreFunctionIntegralKL
from discrete_distill.distillation.methods import (
    CorruptionByCount,
    CorruptionByParts,
    CorruptionByTime,
    PathRatio,
    Regularization,
    SequenceCredit,
    TokenCredit,
    VocabularyCredit,
    with_changes,
)
from discrete_distill.distillation.methods.discriminator_fit import judged_states
from discrete_distill.distillation.networks import Networks
from discrete_distill.distillation.rollout import Rollout
from discrete_distill.models import DiT, discriminator_loss
from discrete_distill.process import BetaTime

PAPER = DiDiInstructConfig.paper()
UNIFORM = BetaTime(0.02, 0.98, a=1.0, b=1.0)
VOCABULARY = DiDiInstructConfig.recommended(
    credit=VocabularyCredit(),
    paths={"num_steps": (2,)},
    advantages={"group_size": 4},
    regularization=Regularization(),
)
TOKENS = with_changes(VOCABULARY, credit=TokenCredit(window=1))
SEQUENCES = with_changes(VOCABULARY, credit=SequenceCredit(corruption=CorruptionByCount()))
EVERY_KIND = {
    "paper": PAPER,
    "vocabulary": with_changes(
        VOCABULARY, regularization={"path_kl": {"coefficient": 0.1}, "entropy_coefficient": 0.01}
    ),
    "path": with_changes(VOCABULARY, log_ratio=PathRatio()),
    "token": TOKENS,
    "sequence": with_changes(SEQUENCES, regularization={"path_kl": {"coefficient": 0.1}}),
    "parts": with_changes(TOKENS, credit={"corruption": CorruptionByParts(num_parts=2)}),
    "branching": with_changes(TOKENS, paths={"branching": True}),
    "defaults": DiDiInstructConfig.recommended(advantages={"group_size": 4}, regularization=Regularization()),
}


def networks(method: DiDiInstruct) -> dict[str, nn.Module]:
    return {name: getattr(method, name) for name in ("student", "teacher", "discriminator", "auxiliary")}


def with_gradients(method: DiDiInstruct, loss: Tensor) -> set[str]:
    """Names of the networks that the loss has a gradient for, other than zero."""
    for network in networks(method).values():
        network.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name
        for name, network in networks(method).items()
        if any(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())
    }


def rollout_of(method: DiDiInstruct, batch: int = 8, seed: int = 0) -> Rollout:
    return method.rollout(batch, LENGTH, generator=seeded(seed))


def reference_tokens(batch: int = 8, seed: int = 9) -> Tensor:
    return torch.randint(5, (batch, LENGTH), generator=seeded(seed))


def student_gradient(method: DiDiInstruct, seed: int = 0) -> Tensor:
    method.student.zero_grad(set_to_none=True)
    method.student_loss(rollout_of(method, seed=seed), generator=seeded(1)).loss.backward()
    return torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_students_loss_has_gradients_for_the_student_alone(kind) -> None:
    method = small_method(EVERY_KIND[kind])
    out = method.student_loss(rollout_of(method), generator=seeded(1))
    assert bool(out.loss.isfinite())
    assert with_gradients(method, out.loss) == {"student"}
    assert all(not value.requires_grad and bool(value.isfinite()) for value in out.metrics.values())


@pytest.mark.parametrize("states", ["corrupted", "path"])
def test_the_discriminators_loss_has_gradients_for_the_discriminator_alone(states) -> None:
    method = small_method(PAPER if states == "corrupted" else TOKENS)
    out = method.discriminator_loss(rollout_of(method), reference_tokens(), generator=seeded(1))
    assert with_gradients(method, out.loss) == {"discriminator"}
    assert 0.0 <= float(out.metrics["discriminator_accuracy"]) <= 1.0


@pytest.mark.parametrize("config", [VOCABULARY, TOKENS, SEQUENCES])
def test_the_auxiliarys_loss_has_gradients_for_the_auxiliary_alone(config) -> None:
    method = small_method(config)
    out = method.auxiliary_loss(rollout_of(method), generator=seeded(1))
    assert with_gradients(method, out.loss) == {"auxiliary"}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_student_is_evaluated_once_for_each_state_and_the_first_as_one_row(kind) -> None:
    config = with_changes(EVERY_KIND[kind], paths={"num_steps": (3,)})
    method = small_method(config)
    sizes = {name: count_calls(network) for name, network in networks(method).items() if isinstance(network, DiT)}
    rollout = rollout_of(method)
    assert len(sizes["student"]) == 3
    if config.paths.time_distribution is None:
        assert sizes["student"][0] == 1
    assert max(sizes["student"]) <= 8
    before = list(sizes["student"])
    method.student_loss(rollout, generator=seeded(1)).loss.backward()
    method.discriminator_loss(rollout, reference_tokens(), generator=seeded(1))
    method.auxiliary_loss(rollout, generator=seeded(1))
    assert sizes["student"] == before


def test_a_verdict_saves_the_students_loss_a_pass_of_the_discriminator() -> None:
    method = small_method(with_changes(PAPER, log_ratio={"reuse_logits": True}))
    assert method.discriminator is not None
    asked = count_calls(method.discriminator.backbone)
    rollout = rollout_of(method)
    judged = method.discriminator_loss(rollout, reference_tokens(), generator=seeded(1))
    assert asked == [8, 8]
    assert judged.log_ratio_output is not None
    out = method.student_loss(rollout, log_ratio_output=judged.log_ratio_output)
    assert asked == [8, 8]
    assert with_gradients(method, out.loss) == {"student"}
    torch.testing.assert_close(out.metrics["log_ratio"], judged.log_ratio_output.log_ratio.per_sequence.mean())
    assert (
        small_method(PAPER).discriminator_loss(rollout, reference_tokens(), generator=seeded(1)).log_ratio_output
        is None
    )


def test_no_teacher_is_asked_where_nothing_needs_it() -> None:
    method = small_method(with_changes(PAPER, regularization={"path_kl": {"coefficient": 0.0}}))
    asked = count_calls(method.teacher)
    method.student_loss(rollout_of(method), generator=seeded(1))
    assert asked == []


def test_the_paper_draws_two_step_paths_with_times_shared_by_a_group() -> None:
    rollout = rollout_of(small_method(PAPER))
    assert len(rollout.steps) == 2
    assert rollout.group_size == 4
    assert len(rollout.tau.unique()) == 2
    assert len(rollout.tau.view(2, 4).unique(dim=1)[0]) == 1
    assert bool(((rollout.tau >= 0.02) & (rollout.tau <= 0.98)).all())


def test_settings_of_the_path() -> None:
    one = rollout_of(small_method(with_changes(PAPER, paths={"num_steps": (1,)})))
    assert len(one.steps) == 1
    drawn = {"corruption": {"time_distribution": UNIFORM}}
    on_grid = with_changes(PAPER, paths={"time_distribution": None, "num_steps": (4,)}, credit=drawn)
    grid = rollout_of(small_method(on_grid))
    assert [float(step.t[0]) for step in grid.steps] == [1.0, 0.75, 0.5, 0.25]
    narrow = rollout_of(small_method(with_changes(PAPER, paths={"time_distribution": {"low": 0.4, "high": 0.5}})))
    assert bool(((narrow.tau >= 0.4) & (narrow.tau <= 0.5)).all())
    peaked = small_method(
        with_changes(PAPER, paths={"time_distribution": {"a": 50.0, "b": 50.0}}, advantages={"group_size": 1})
    ).rollout(256, LENGTH, generator=seeded(0))
    assert float(peaked.tau.std()) < 0.1
    numbers = {
        len(rollout_of(small_method(with_changes(VOCABULARY, paths={"num_steps": (2, 5)})), seed=s).steps)
        for s in range(8)
    }
    assert numbers == {2, 5}


def corruption_times(config: DiDiInstructConfig) -> tuple[Rollout, list[Tensor]]:
    """Times at which the student's samples were judged."""
    method, times = small_method(config), []
    rollout = rollout_of(method)
    assert method.estimator is not None
    inner = method.estimator.log_ratio

    def watched(x_t, t, **rest):
        times.append(t)
        return inner(x_t, t, **rest)

    method.estimator = replace(method.estimator, log_ratio=watched)
    method.student_loss(rollout, generator=seeded(1))
    return rollout, times


def test_coupled_time_is_the_paths_own_and_otherwise_drawn_anew() -> None:
    rollout, times = corruption_times(PAPER)
    assert times[0].tolist() == rollout.tau.tolist()
    rollout, times = corruption_times(with_changes(PAPER, credit={"corruption": {"time_distribution": UNIFORM}}))
    assert len(times[0].unique()) == 2
    assert not set(times[0].tolist()) & set(rollout.tau.tolist())
    _, times = corruption_times(
        with_changes(PAPER, credit={"corruption": {"time_distribution": UNIFORM, "num_draws": 3}})
    )
    assert len(times) == 3


def test_coupled_time_without_an_intermediate_state_is_drawn_and_not_all_mask() -> None:
    config = with_changes(PAPER, paths={"num_steps": (1,)}, credit={"corruption": {"importance_weight": True}})
    _, times = corruption_times(config)
    assert bool((times[0] <= 0.98).all())
    method = small_method(config)
    assert bool(method.student_loss(rollout_of(method), generator=seeded(1)).loss.isfinite())
    x_t, t = judged_states(method.process, method.config, rollout_of(method), seeded(2))
    assert bool((t <= 0.98).all())
    assert bool((x_t != 5).any())


@pytest.mark.parametrize(
    ("choices", "field", "value"),
    [
        ({"credit": TokenCredit(window=2, corruption=CorruptionByTime())}, "window", 2),
        ({"credit": TokenCredit(corruption=CorruptionByTime())}, "credit", "token"),
        ({"credit": {"corruption": {"num_draws": 3}}}, "corruptions", 3),
        ({"credit": {"corruption": {"importance_weight": True}}}, "importance_weight", True),
        ({"advantages": {"baseline": "leave_one_out"}}, "baseline", "leave_one_out"),
        ({"advantages": {"scale": "batch"}}, "scale", "batch"),
        ({"advantages": {"clip": 1.5}}, "advantage_clip", 1.5),
    ],
)
def test_settings_that_the_estimator_takes_over_change_the_gradient(choices, field, value) -> None:
    changed = with_changes(PAPER, **choices)
    method = small_method(changed)
    assert getattr(method.estimator, field) == value
    if field != "advantage_clip":
        assert not torch.allclose(student_gradient(method), student_gradient(small_method(PAPER)))


def estimator_of(**choices) -> ScoreFunctionIntegralKL:
    estimator = small_method(with_changes(PAPER, **choices)).estimator
    assert estimator is not None
    return estimator


def test_omega_reward_clip_and_counts() -> None:
    t = torch.tensor([0.02, 0.5, 0.98])
    assert estimator_of(credit={"corruption": {"time_weight": None}}).weight(t).tolist() == [1.0, 1.0, 1.0]
    assert estimator_of().weight(t).tolist() == pytest.approx([10.0, 2.0, 1.0 / 0.98], rel=1e-3)
    clipped = {"corruption": {"time_weight": {"low": 1.5, "high": 1.8}}}
    assert estimator_of(credit=clipped).weight(t).tolist() == pytest.approx([1.8, 1.8, 1.5])
    assert estimator_of(reward_clip=0.5).reward(torch.tensor([2.0])).tolist() == [-0.5]
    by_count = small_method(with_changes(SEQUENCES, credit={"corruption": CorruptionByCount()})).estimator
    assert by_count is not None
    assert by_count.by == "count"
    by_time = CorruptionByTime(num_draws=4, time_distribution=UNIFORM, time_weight=None)
    gradients = [
        student_gradient(small_method(with_changes(SEQUENCES, credit={"corruption": corruption})))
        for corruption in (CorruptionByCount(), by_time)
    ]
    assert not torch.allclose(*gradients)


def test_the_kl_and_the_entropy_are_added_as_they_are() -> None:
    plain, regular = (
        small_method(with_changes(PAPER, regularization={"path_kl": {"coefficient": 0.0}, "entropy_coefficient": 0.0})),
        small_method(PAPER),
    )
    outs = [method.student_loss(rollout_of(method), generator=seeded(1)) for method in (plain, regular)]
    assert "teacher_divergence" not in outs[0].metrics
    expected = outs[0].loss + 0.02 * outs[1].metrics["teacher_divergence"] - 5e-4 * outs[1].metrics["entropy"]
    torch.testing.assert_close(outs[1].loss, expected)
    assert float(outs[1].metrics["teacher_divergence"]) > 0.01


@pytest.mark.parametrize("kind", ["forward", "reverse", "jeffreys", "js", "tv"])
def test_the_kl_is_of_the_chosen_kind_at_the_states_of_the_path(kind) -> None:
    method = small_method(with_changes(PAPER, regularization={"path_kl": {"kind": kind, "beta": 0.3}}))
    rollout = rollout_of(method)
    actual = method.student_loss(rollout, generator=seeded(1)).metrics["teacher_divergence"]
    total = torch.zeros(())
    for step in rollout.steps:
        shown = (step.x_t == 5) & (step.x_s != 5)
        student, teacher = (
            PROCESS.log_probs(network(step.x_t, step.t), step.x_t)[shown]
            for network in (method.student, method.teacher)
        )
        total = total + token_divergence(student, teacher, kind=kind, beta=0.3).sum()
    torch.testing.assert_close(actual, (total / (8 * LENGTH)).detach())


def test_entropy_is_that_of_the_distributions_that_tokens_were_drawn_from() -> None:
    method = small_method(with_changes(VOCABULARY, paths={"num_steps": (1,)}))
    nn.init.zeros_(method.student.output_layer.linear.weight)
    nn.init.zeros_(method.student.output_layer.linear.bias)
    out = method.student_loss(rollout_of(method), generator=seeded(1))
    assert float(out.metrics["entropy"]) == pytest.approx(torch.tensor(5.0).log().item(), abs=1e-5)


def test_label_smoothing_and_judged_states_reach_the_discriminator() -> None:
    losses = {}
    for smoothing in (0.0, 0.3):
        method = small_method(with_changes(PAPER, log_ratio={"label_smoothing": smoothing}))
        out = method.discriminator_loss(rollout_of(method), reference_tokens(), generator=seeded(1))
        losses[smoothing] = float(out.loss.detach())
    assert losses[0.0] != losses[0.3]
    method = small_method(TOKENS)
    rollout = rollout_of(method)
    x_t, t = judged_states(method.process, method.config, rollout, seeded(3))
    for row in range(8):
        states = [(step.x_s[row].tolist(), float(step.s[row])) for step in rollout.steps]
        assert (x_t[row].tolist(), float(t[row])) in states
    assert {float(value) for value in t} > {0.0}


def test_the_loss_of_a_discriminator_without_a_reward_is_the_cross_entropy_of_both_sides() -> None:
    method = small_method(with_changes(TOKENS, paths={"num_steps": (1,)}))
    rollout, reference = rollout_of(method), reference_tokens()
    out = method.discriminator_loss(rollout, reference, generator=seeded(1))
    method.discriminator.eval()
    t, every = torch.zeros(8), torch.ones(8, LENGTH, dtype=torch.bool)
    logits = [method.discriminator(x, t) for x in (rollout.sequences, reference)]
    expected = discriminator_loss(*logits, every, every, label_smoothing=0.0)
    torch.testing.assert_close(out.loss, expected, atol=1e-4, rtol=1e-4)


def test_hidden_is_the_share_of_a_step_that_is_scored() -> None:
    for hidden in (0.25, 1.0):
        method = small_method(with_changes(VOCABULARY, credit={"mask_ratio": hidden}, paths={"num_steps": (1,)}))
        rollout = rollout_of(method, batch=256)
        remasked = method._vocabulary_losses()._probe(rollout, rollout.steps[0], seeded(1))
        assert len(remasked.rows) / (256 * LENGTH) == pytest.approx(hidden, abs=0.05)


def test_with_the_paths_own_distribution_no_auxiliary_is_asked() -> None:
    method = small_method(with_changes(VOCABULARY, log_ratio=PathRatio()))
    assert method.auxiliary is not None
    asked = count_calls(method.auxiliary)
    method.student_loss(rollout_of(method), generator=seeded(1))
    assert asked == []
    alone = DiDiInstruct(Networks(method.student, method.teacher), PROCESS, method.config)
    losses = [each.student_loss(rollout_of(each), generator=seeded(1)).loss for each in (method, alone)]
    torch.testing.assert_close(losses[0], losses[1])


def test_the_auxiliary_is_pulled_to_the_student_and_a_student_equal_to_the_teacher_stays() -> None:
    """With auxiliary and teacher equal the log-ratio is zero everywhere, and so is the gradient."""
    config = with_changes(VOCABULARY, paths={"step_conditioning": False}, log_ratio={"step_conditioning": False})
    teacher = small_dit(1)
    method = DiDiInstruct(Networks(small_dit(0), teacher, auxiliary=small_dit(1)), PROCESS, config)
    assert float(student_gradient(method).abs().max()) == 0.0
    auxiliary = small_dit(2)
    method = DiDiInstruct(Networks(small_dit(0), teacher, auxiliary=auxiliary), PROCESS, config)
    optimiser, losses = torch.optim.Adam(auxiliary.parameters(), lr=1e-2), []
    for index in range(30):
        loss = method.auxiliary_loss(rollout_of(method, seed=index), generator=seeded(index)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("step_conditioning", [False, True])
def test_a_made_student_and_auxiliary_start_as_the_teacher(step_conditioning) -> None:
    teacher = small_dit(1).requires_grad_(False)
    config = with_changes(VOCABULARY, paths={"step_conditioning": step_conditioning})
    student, auxiliary = DiDiInstruct.make_student(teacher, config), DiDiInstruct.make_auxiliary(teacher, config)
    assert student.accepts_step == step_conditioning
    assert auxiliary.accepts_step
    by_samples = DiDiInstruct.make_auxiliary(teacher, with_changes(SEQUENCES, log_ratio={"step_conditioning": False}))
    assert not by_samples.accepts_step
    assert DiDiInstruct.make_auxiliary(
        teacher, with_changes(SEQUENCES, log_ratio={"step_conditioning": True})
    ).accepts_step
    assert all(parameter.requires_grad for parameter in by_samples.parameters())
    x, t, s = torch.randint(6, (2, LENGTH), generator=seeded(0)), torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1])
    for network in (student, auxiliary):
        torch.testing.assert_close(network.eval()(x, t, s=s), teacher(x, t))
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert next(network.parameters()) is not next(teacher.parameters())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_auxiliary_is_told_which_number_of_steps_its_samples_took(steps) -> None:
    """Fitted and asked with the time of the last step, 1 / K; the teacher never is."""
    config = with_changes(TOKENS, paths={"num_steps": (steps,)}, log_ratio={"step_conditioning": True})
    teacher, auxiliary = small_dit(1, step_conditioning=True), small_dit(2, step_conditioning=True)
    told: dict[str, list[Tensor]] = {"teacher": [], "auxiliary": []}
    for name, network in (("teacher", teacher), ("auxiliary", auxiliary)):
        spy_on_steps(network, told[name])
    method = DiDiInstruct(Networks(small_dit(0, step_conditioning=True), teacher, auxiliary=auxiliary), PROCESS, config)
    rollout = rollout_of(method)
    method.auxiliary_loss(rollout, generator=seeded(1))
    method.student_loss(rollout, generator=seeded(1))
    assert len(told["auxiliary"]) == 1 + config.credit.corruption.num_draws
    assert all(bool((s == 1.0 / steps).all()) for s in told["auxiliary"])
    assert all(s is None for s in told["teacher"])


def spy_on_steps(network: DiT, told: list) -> None:
    inner = network.features

    def features(x_t: Tensor, t: Tensor, *, s: Tensor | None = None, **settings) -> Tensor:
        told.append(s)
        return inner(x_t, t, s=s, **settings)

    network.features = features  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_prompts_and_padding_are_completed_and_never_scored(kind) -> None:
    method = small_method(EVERY_KIND[kind])
    x_init = torch.full((8, LENGTH), 5)
    x_init[:, 0] = torch.arange(8) // 4
    real = (torch.arange(LENGTH) < 5)[None, :].expand(8, -1)
    rollout = method.rollout(x_init=x_init, attention_mask=real, generator=seeded(0))
    assert bool((rollout.sequences[:, 0] == x_init[:, 0]).all())
    assert bool((rollout.sequences[:, 5] == 5).all())
    assert bool((rollout.sequences[:, 1:5] != 5).all())
    reference = torch.where(rollout.generation_mask, reference_tokens(), x_init)
    losses = (
        method.student_loss(rollout, generator=seeded(1)).loss,
        method.discriminator_loss(rollout, reference, generator=seeded(1)).loss,
        method.auxiliary_loss(rollout, generator=seeded(1)).loss,
    )
    assert all(bool(loss.isfinite()) for loss in losses)


def test_a_seed_fixes_the_step() -> None:
    losses = []
    for seed in (0, 0, 1):
        method = small_method(PAPER)
        losses.append(method.student_loss(rollout_of(method, seed=seed), generator=seeded(seed)).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_networks_that_the_log_ratio_needs_must_be_given() -> None:
    student, teacher = small_dit(0, step_conditioning=True), small_dit(1)
    with pytest.raises(ValueError, match="discriminator"):
        DiDiInstruct(Networks(student, teacher), PROCESS, PAPER)
    with pytest.raises(ValueError, match="auxiliary"):
        DiDiInstruct(Networks(student, teacher), PROCESS, VOCABULARY)
    method = DiDiInstruct(Networks(student, teacher), PROCESS, with_changes(VOCABULARY, log_ratio=PathRatio()))
    rollout = rollout_of(method)
    with pytest.raises(ValueError, match="without a discriminator"):
        method.discriminator_loss(rollout, reference_tokens())
    with pytest.raises(ValueError, match="without an auxiliary denoiser"):
        method.auxiliary_loss(rollout)


def test_bad_batches_are_refused() -> None:
    method = small_method(PAPER)
    with pytest.raises(ValueError, match="group_size 4 does not divide the batch of 6 sequences"):
        method.rollout(6, LENGTH)
    with pytest.raises(ValueError, match="batch_size and length, or x_init"):
        method.rollout(8)
    with pytest.raises(ValueError, match=r"reference has shape \(4, 6\), the rollout \(8, 6\)"):
        method.discriminator_loss(rollout_of(method), reference_tokens(4))


def test_distilling_the_small_chain_brings_two_steps_closer_to_it_than_the_teacher() -> None:
    """150 updates: KL(two-step sampler || chain) falls by 30% at least, from 1.01 nats."""
    chain, length = exact.small_chain()
    student, teacher, auxiliary = (ChainAndMore(chain, seed) for seed in (0, 1, 2))
    method = DiDiInstruct(Networks(student, teacher, auxiliary=auxiliary), PROCESS, VOCABULARY)
    optimisers = [torch.optim.AdamW(network.more.parameters(), lr=2e-3) for network in (student, auxiliary)]
    generator, updates = seeded(0), 150

    def two_steps() -> float:
        with torch.no_grad():
            distribution = exact.sampler_distribution(student, PROCESS, exact.uniform_times(2), length, 5)
        return float(exact.kl(distribution, chain.distribution(length)))

    before = two_steps()
    assert before == pytest.approx(1.0144, abs=1e-3)
    for update in range(updates):
        rollout = method.rollout(64, length, generator=generator)
        losses = [
            method.student_loss(rollout, generator=generator),
            method.auxiliary_loss(rollout, generator=generator),
        ]
        for optimiser, out in zip(optimisers, losses, strict=True):
            if optimiser is optimisers[0] and update < 15:
                continue
            optimiser.zero_grad()
            out.loss.backward()
            nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 0.5)
            optimiser.step()
    assert two_steps() < 0.7 * before


def test_a_discriminator_takes_its_place() -> None:
    """The paper's own loop, for a few steps, with its own networks."""
    teacher = small_dit(1)
    discriminator = Discriminator.from_denoiser(teacher, trainable_blocks=1)
    method = DiDiInstruct(
        Networks(DiDiInstruct.make_student(teacher, PAPER), teacher, discriminator=discriminator), PROCESS, PAPER
    )
    optimisers = [torch.optim.AdamW(network.parameters(), lr=1e-3) for network in (discriminator, method.student)]
    start = [p.detach().clone() for p in method.student.parameters()]
    for index in range(3):
        rollout = rollout_of(method, seed=index)
        losses = (
            method.discriminator_loss(rollout, reference_tokens(seed=index), generator=seeded(index)),
            method.student_loss(rollout, generator=seeded(index)),
        )
        for optimiser, out in zip(optimisers, losses, strict=True):
            optimiser.zero_grad()
            out.loss.backward()
            optimiser.step()
    moved = [bool((a != b).any()) for a, b in zip(start, method.student.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
