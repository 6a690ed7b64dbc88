"""On-policy distillation: outcomes and prefixes by an independent decoder, the loss by its definition, its optimum."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from discrete_distill import MaskedDiffusion, exact
from discrete_distill.distillation.methods import OnPolicyConfig, OnPolicyDistillation
from discrete_distill.distillation.methods.on_policy import draw_state
from discrete_distill.distillation.methods.outcomes import OutcomeDecoder
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import DiT, DiTConfig

K, LENGTH = 3, 4
PROCESS = MaskedDiffusion(K)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(seed: int, scale: float = 1.5) -> exact.TabularDenoiser:
    """Random conditionals, which belong to no joint distribution."""
    made = exact.TabularDenoiser(LENGTH, K, K)
    nn.init.normal_(made.logits, std=scale, generator=seeded(seed))
    return made


def mixed(student: int, share: float) -> exact.TabularDenoiser:
    """A student that is partly its teacher, the table of seed 0."""
    made = table(student)
    with torch.no_grad():
        made.logits.lerp_(table(0).logits, share)
    return made


def probabilities(denoiser: Any, x: list[int]) -> Tensor:
    """Of the words at each position, fp64 ``[L, K]``."""
    return denoiser(torch.tensor([x]), torch.zeros(1))[0, :, :K].double().softmax(-1).detach()


def decoded(denoiser: Any, x: list[int], movable: list[bool], steps: int) -> list[int]:
    """Greedy decoding of one sequence, in plain Python."""
    x = list(x)
    for left in range(steps, 0, -1):
        masks = [i for i in range(len(x)) if x[i] == K and movable[i]]
        if not masks:
            break
        p = probabilities(denoiser, x)
        masks.sort(key=lambda i: -float(p[i].max()))
        for i in masks[: math.ceil(len(masks) / left)]:
            x[i] = int(p[i].argmax())
    return x


def prefix(student: Any, teacher: Any, x: list[int], movable: list[bool], config: OnPolicyConfig) -> set[int]:
    """Positions that are committed, in plain Python."""
    outcome = decoded(teacher, x, movable, config.teacher_steps)
    p = probabilities(student, x)
    order = sorted((i for i in range(len(x)) if x[i] == K and movable[i]), key=lambda i: -float(p[i].max()))
    length = next((n for n, i in enumerate(order) if int(p[i].argmax()) != outcome[i]), len(order))
    if config.num_checks == 0:
        return set(order[:length])
    for _ in range(config.num_checks):
        if length == 0:
            break
        state = [outcome[i] if i in order[:length] else token for i, token in enumerate(x)]
        after, rest = decoded(teacher, state, movable, config.teacher_steps), order[length:]
        if sum(after[i] == outcome[i] for i in rest) >= config.agreement * len(rest):
            return set(order[:length])
        length //= 2
    return set()


CONFIGS = {
    "default": OnPolicyConfig(num_steps=(2, 3), teacher_steps=4),
    "coarse teacher": OnPolicyConfig(num_steps=(2,), teacher_steps=2),
    "unchecked": OnPolicyConfig(num_steps=(3,), order="random", num_checks=0),
    "one check": OnPolicyConfig(num_steps=(2,), order="random", num_checks=1),
    "half of the others": OnPolicyConfig(num_steps=(2,), order="random", agreement=0.5),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_outcomes_and_prefixes_are_those_of_a_plain_decoder(name: str) -> None:
    """With prompts of 0 to 2 tokens, padding, and a student that is half its teacher."""
    student, teacher, config = mixed(1, 0.5), table(0), CONFIGS[name]
    rows, place = 60, torch.arange(LENGTH)
    prompt = (place < torch.arange(rows)[:, None] % 3).long()
    x_init = torch.where(prompt > 0, torch.arange(rows)[:, None] % K, K)
    method = OnPolicyDistillation(Networks(student, teacher), PROCESS, config)
    rollout = method.rollout(x_init=x_init, generator=seeded(2))
    assert torch.equal(rollout.x_t[x_init != K], x_init[x_init != K])
    assert torch.equal(rollout.loss_mask, rollout.x_t == K)
    lengths = set()
    for x_t, outcome, committed, start in zip(
        rollout.x_t.tolist(), rollout.x_0.tolist(), rollout.committed, x_init.tolist(), strict=True
    ):
        movable = [token == K for token in start]
        assert outcome == decoded(teacher, x_t, movable, config.teacher_steps)
        expected = prefix(student, teacher, x_t, movable, config)
        assert set(committed.nonzero().flatten().tolist()) == expected
        lengths.add((len(expected), x_t.count(K)))
    assert len({length for length, _ in lengths}) > 2
    assert any(length < masks for length, masks in lengths)


def test_padding_is_neither_generated_nor_committed_and_its_content_changes_nothing() -> None:
    torch.manual_seed(0)
    shape = DiTConfig(vocab_size=K + 1, max_length=LENGTH, hidden_size=16, num_layers=1, num_heads=2, cond_size=8)
    student, teacher = DiT(shape).eval(), DiT(shape).eval()
    for network in (student, teacher):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.4)
    real = torch.arange(LENGTH) < torch.tensor([[4], [3], [2], [4]])
    found = []
    for filler in (0, 2):
        x_init = torch.full((4, LENGTH), K).masked_fill(~real, filler)
        x_init[:, 0] = 1
        method = OnPolicyDistillation(Networks(student, teacher), PROCESS, OnPolicyConfig(num_steps=(2,)))
        rollout = method.rollout(x_init=x_init, attention_mask=real, generator=seeded(0))
        assert not bool(((rollout.loss_mask | rollout.committed) & ~real).any())
        assert bool((rollout.x_0[~real] == filler).all())
        student.zero_grad()
        method.loss("student", rollout).loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        found.append((rollout.x_t.where(real, 0), rollout.committed, gradient))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradient_are_those_of_the_definition(seed: int) -> None:
    student, teacher = mixed(seed + 1, 0.7), table(0)
    config = OnPolicyConfig(num_steps=(2,), order="random", threshold=0.8, anchor_weight=0.3)
    method = OnPolicyDistillation(Networks(student, teacher), PROCESS, config)
    rollout = method.rollout(30, LENGTH, generator=seeded(seed))
    hinges, divergences = [], []
    for b in range(30):
        p = student(rollout.x_t[b : b + 1], torch.zeros(1))[0, :, :K].softmax(-1)
        q = probabilities(teacher, rollout.x_t[b].tolist())
        short = [config.threshold - p[i, rollout.x_0[b, i]] for i in range(LENGTH) if rollout.committed[b, i]]
        hinges.append(max([torch.zeros(()), *short], key=lambda value: float(value.detach())))
        for i in range(LENGTH):
            if rollout.loss_mask[b, i] and not rollout.committed[b, i]:
                divergences.append((q[i] * (q[i].log() - p[i].log())).sum())
    assert 0 < len(divergences) < int(rollout.loss_mask.sum())
    expected = sum(hinges) / 30 + 0.3 * sum(divergences) / rollout.loss_mask.sum()
    out = method.loss("student", rollout)
    torch.testing.assert_close(out.loss, expected.to(out.loss.dtype), rtol=1e-5, atol=1e-6)
    (mine,) = torch.autograd.grad(out.loss, student.logits)
    (theirs,) = torch.autograd.grad(expected, student.logits)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    half = method.loss("student", rollout, num_tokens=2.0 * rollout.loss_mask.sum())
    torch.testing.assert_close(half.loss, out.loss / 2)  # One of two equal parts, whose losses are added up.


def test_sequences_that_are_all_prompt_change_nothing() -> None:
    method = OnPolicyDistillation(Networks(mixed(1, 0.7), table(0)), PROCESS, OnPolicyConfig(num_steps=(2,)))
    rollout = method.rollout(6, LENGTH, generator=seeded(0))
    given = {name: torch.cat((value, value[:3])) for name, value in vars(rollout).items() if torch.is_tensor(value)}
    for name in ("loss_mask", "committed"):
        given[name][6:] = False
    given["x_t"][6:] = 0
    more = method.loss("student", replace(rollout, **given))
    assert float(more.metrics["hinge"]) > 0.0
    torch.testing.assert_close(more.loss, method.loss("student", rollout).loss)


class Shifted(nn.Module):
    """A distribution's perfect denoiser as a network."""

    def __init__(self, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.answer(x_t, t)


def test_the_optimum_is_certain_of_what_can_be_committed_and_the_teacher_elsewhere() -> None:
    """P(00) = 0.4, P(11) = 0.35, P(01) = 0.25. Of two masks the most likely words are 0 and 1, but the outcome is 00:
    the first alone can be committed. In every state the optimum is known."""
    joint = torch.tensor([[0.4, 0.25], [0.0, 0.35]], dtype=torch.float64)
    process, mask = MaskedDiffusion(2), 2
    teacher = Shifted(exact.DistributionDenoiser(joint, mask))
    student = exact.TabularDenoiser(2, 2, mask).copy_from(teacher, process)
    config = OnPolicyConfig(num_steps=(2,), order="random", teacher_steps=2, threshold=0.9)
    method = OnPolicyDistillation(Networks(student, teacher), process, config)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.04)
    g = seeded(0)
    for step in range(160):
        for group in optimizer.param_groups:
            group["lr"] = 0.04 * (1 - step / 160)
        method.loss("student", method.rollout(32, 2, generator=g)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def likely(*state: int) -> list[list[float]]:
        return student(torch.tensor([state]), torch.zeros(1))[0, :, :2].softmax(-1).tolist()

    # What is committed is as likely as the threshold, where the last update has left it, or a little more.
    both, second, first = likely(2, 2), likely(0, 2)[1], likely(2, 1)[0]
    for probability in (both[0][0], second[0], first[1]):
        assert 0.89 < probability < 0.96
    assert both[1][0] == pytest.approx(0.4, abs=0.02)
    assert likely(1, 2)[1][1] > 0.99
    assert likely(2, 0)[0][0] > 0.99


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_outcomes_at_a_temperature_are_samples_of_the_teacher(temperature: float) -> None:
    """One token a step, in an order that depends on the state alone: exactly the teacher's joint distribution at
    temperature 1; at any, a position that is masked alone has the tempered conditional."""
    chain = exact.random_chain(K, seeded(3))
    teacher, count = chain.denoiser(K), 20_000
    x_t = torch.full((count, LENGTH), K)
    if temperature != 1.0:
        x_t[:, :3] = torch.tensor([0, 1, 2])
    decoder = OutcomeDecoder(
        process=PROCESS,
        num_steps=LENGTH,
        temperature=temperature,
        seed=torch.tensor(7),
        size=torch.full((count,), LENGTH),
        generation_mask=x_t == K,
    )
    drawn = decoder.outcome(teacher, x_t)
    if temperature == 1.0:
        expected = chain.distribution(LENGTH).flatten()
        index = (drawn * K ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    else:
        expected = (teacher(x_t[:1], torch.zeros(1))[0, 3, :K].double() / temperature).softmax(-1)
        index = drawn[:, 3]
    observed = torch.bincount(index, minlength=len(expected)) / count
    error = (expected * (1 - expected) / count).sqrt()
    assert bool(((observed - expected).abs() < 5 * error + 1e-9).all())
    assert torch.equal(decoder.outcome(teacher, x_t), drawn)


def test_a_student_that_is_its_teacher_commits_what_is_independent_at_any_temperature() -> None:
    """Independent words: one answer fills all masks as many steps do, since each position has one uniform number."""
    words = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    teacher = Shifted(exact.MarkovChain(words, words.repeat(K, 1)).denoiser(K))
    for temperature in (0.0, 1.0):
        config = OnPolicyConfig(num_steps=(2,), order="random", temperature=temperature)
        rollout = OnPolicyDistillation(Networks(teacher, teacher), PROCESS, config).rollout(
            50, LENGTH, generator=seeded(0)
        )
        assert torch.equal(rollout.committed, rollout.loss_mask)
        assert temperature == 0.0 or len(rollout.x_0[rollout.loss_mask].unique()) == K


def test_dropout_reaches_the_loss_alone() -> None:
    torch.manual_seed(0)
    shape = DiTConfig(
        vocab_size=K + 1, max_length=LENGTH, hidden_size=16, num_layers=1, num_heads=2, cond_size=8, dropout=0.5
    )
    student, teacher = DiT(shape), DiT(shape)
    for network in (student, teacher):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.4)
    method = OnPolicyDistillation(Networks(student, teacher), PROCESS, OnPolicyConfig(num_steps=(2,)))
    student.eval()
    teacher.eval()
    still = method.rollout(8, LENGTH, generator=seeded(0))
    student.train()
    teacher.train()
    moving = method.rollout(8, LENGTH, generator=seeded(0))
    for name in ("x_t", "x_0", "committed"):
        assert torch.equal(getattr(still, name), getattr(moving, name))
    losses = [float(method.loss("student", moving).loss.detach()) for _ in range(2)]
    assert losses[0] != losses[1]
    assert student.training
    assert teacher.training


def test_states_are_drawn_evenly_among_those_with_masks() -> None:
    history = torch.tensor([[[3, 3], [3, 3]], [[0, 3], [0, 1]], [[0, 2], [0, 1]], [[0, 2], [0, 1]]])
    drawn = draw_state(history.repeat_interleave(2000, 1), seeded(0))
    first, second = drawn[:2000], drawn[2000:]
    share = float((first == torch.tensor([3, 3])).all(1).float().mean())
    assert abs(share - 0.5) < 5 * 0.5 / 2000**0.5
    assert set(map(tuple, first.tolist())) == {(3, 3), (0, 3)}
    assert bool((second == 3).all())
    done = torch.tensor([[[1, 1]], [[1, 1]]])
    assert draw_state(done, seeded(0)).tolist() == [[1, 1]]


def test_a_batch_without_masks_has_a_loss_of_zero() -> None:
    method = OnPolicyDistillation(Networks(table(1), table(0)), PROCESS, OnPolicyConfig(num_steps=(2,)))
    rollout = method.rollout(x_init=torch.zeros(2, LENGTH, dtype=torch.long), generator=seeded(0))
    assert float(method.loss("student", rollout).loss.detach()) == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": ()},
        {"num_steps": (0,)},
        {"order": "left to right"},
        {"teacher_steps": 0},
        {"temperature": -1.0},
        {"threshold": 0.0},
        {"threshold": 1.1},
        {"anchor_weight": -1.0},
        {"num_checks": -1},
        {"agreement": 1.1},
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        OnPolicyConfig(**options)


def test_sizes_or_prompts_are_needed() -> None:
    method = OnPolicyDistillation(Networks(table(1), table(0)), PROCESS)
    with pytest.raises(ValueError, match="x_init"):
        method.rollout(3)
