"""What a state draws and what it leaves, which rows it asks a denoiser about, and one engine for samples and paths."""

import numpy as np
import pytest
import torch
from torch import Tensor

from discrete_distill import AncestralSampler, IntermediateStateMatcher
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import MaskedDiffusion
from discrete_distill.samplers import SamplerState
from discrete_distill.samplers.logits import evaluate, read_logits
from discrete_distill.samplers.positions import Positions, positions_at

MASK = 4
PROCESS = MaskedDiffusion(MASK)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recording:
    """Logits that name the sequence's first token, the time and the step's end; remembers what it was asked."""

    accepts_step = True

    def __init__(self) -> None:
        self.asked: list[Tensor] = []
        self.cond: list[dict[str, Tensor]] = []

    def __call__(self, x_t, t, /, *, s, **cond):
        self.asked.append(x_t)
        self.cond.append(cond)
        place = torch.arange(x_t.shape[1])[None, :].expand_as(x_t)
        columns = [x_t[:, :1].expand_as(x_t), place, t[:, None].expand_as(x_t), s[:, None].expand_as(x_t)]
        return torch.stack([column.float() for column in (*columns, place)], dim=-1)


def silent(x_t, t, /, **_):
    return torch.zeros(*x_t.shape, MASK + 1)


def positions_of(state: SamplerState, *index: int) -> Positions:
    flags = torch.zeros(state.tokens.numel(), dtype=torch.bool)
    flags[list(index)] = True
    return positions_at(flags.view_as(state.tokens))


def test_an_unconditional_state_is_all_mask() -> None:
    state = SamplerState(PROCESS, silent, (2, 3), generator=seeded(0))
    assert state.tokens.tolist() == [[MASK] * 3] * 2
    assert bool(state.masked().all())
    assert state.batch == 2


def test_only_masks_at_real_positions_move() -> None:
    x_init = torch.tensor([[0, MASK, MASK, MASK]])
    attention_mask = torch.tensor([[True, True, True, False]])
    state = SamplerState(PROCESS, silent, x_init=x_init, attention_mask=attention_mask, generator=seeded(0))
    assert state.generation_mask.tolist() == [[False, True, True, False]]
    state.write(torch.tensor([1]), torch.tensor([2]), torch.tensor([-0.5]))
    assert state.tokens.tolist() == [[0, 2, MASK, MASK]]
    assert state.masked().tolist() == [[False, False, True, False]]
    assert state.log_probs.tolist() == [[0.0, -0.5, 0.0, 0.0]]


def test_writing_leaves_earlier_states_and_the_prompt_as_they_were() -> None:
    x_init = torch.tensor([[0, MASK]])
    state = SamplerState(PROCESS, silent, x_init=x_init, generator=seeded(0))
    before = state.tokens
    state.write(torch.tensor([1]), torch.tensor([3]), torch.tensor([0.0]))
    assert before.tolist() == x_init.tolist() == [[0, MASK]]


def test_unmasking_draws_are_the_seeds_alone_and_fall_with_their_probability() -> None:
    states = [SamplerState(PROCESS, silent, (rows, 50), generator=seeded(5)) for rows in (40, 400)]
    unmask_draws = [state.unmask_draws(3, torch.full((state.batch,), 0.3)) for state in states]
    assert bool((unmask_draws[1][:40] == unmask_draws[0]).all())
    frequency = unmask_draws[1].float().mean().item()
    assert abs(frequency - 0.3) < 5 * (0.21 / 20_000) ** 0.5
    assert not bool((unmask_draws[0] == states[0].unmask_draws(4, torch.full((40,), 0.3))).all())
    assert not bool(states[0].unmask_draws(0, torch.zeros(40)).any())
    assert bool(states[0].unmask_draws(0, torch.ones(40)).all())


def test_the_seed_is_one_draw_of_the_generator() -> None:
    first, again, other = (SamplerState(PROCESS, silent, (1, 1), generator=seeded(s)).seed for s in (1, 1, 2))
    assert int(first) == int(again) != int(other)


def test_one_all_mask_row_stands_for_all() -> None:
    for share_head in (False, True):
        denoiser = Recording()
        state = SamplerState(PROCESS, denoiser, (5, 3), generator=seeded(0))
        positions, t, s = positions_of(state, 2, 7, 14), torch.ones(5), torch.full((5,), 0.5)
        logits = state.logits(positions, t, s, share_head=share_head)
        assert [tuple(x.shape) for x in denoiser.asked] == [(1, 3)]
        assert logits(slice(None))[:, 1].tolist() == [2.0, 1.0, 2.0]
        assert logits(slice(1, 3))[:, 1].tolist() == [1.0, 2.0]
        assert logits(slice(None))[:, 2:4].tolist() == [[1.0, 0.5]] * 3
        assert state.nfe == 1


@pytest.mark.parametrize("reason", ["times differ", "prompt", "condition", "padding", "written"])
def test_it_does_not_where_rows_could_differ(reason) -> None:
    mask = torch.tensor([[True, True], [True, False]]) if reason == "padding" else None
    x_init = torch.tensor([[0, MASK], [1, MASK]]) if reason == "prompt" else None
    shape = None if reason == "prompt" else (2, 2)
    model_kwargs = {"topic": torch.tensor([1, 2])} if reason == "condition" else None
    denoiser = Recording()
    state = SamplerState(
        PROCESS, denoiser, shape, x_init=x_init, attention_mask=mask, model_kwargs=model_kwargs, generator=seeded(0)
    )
    nothing = torch.tensor([], dtype=torch.long)
    state.write(nothing, nothing, torch.tensor([]))
    if reason == "written":
        state.write(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.0]))
    t, s = torch.ones(2), torch.tensor([0.5, 0.25 if reason == "times differ" else 0.5])
    logits = state.logits(positions_of(state, 1, 2), t, s, one_time=reason != "times differ")(slice(None))
    assert denoiser.asked[0].tolist() == state.tokens.tolist()
    assert logits[:, 3].tolist() == s.tolist()
    if reason == "padding":
        assert denoiser.cond[0]["attention_mask"].tolist() == mask.tolist()


def test_rows_with_keyword_arguments_are_never_taken_for_equal() -> None:
    denoiser = Recording()
    x_t, ones = torch.full((3, 2), MASK), torch.ones(3)
    options = {"s": ones, "model_kwargs": {"topic": 1}, "one_state": True}
    assert evaluate(denoiser, x_t, ones, torch.arange(6), **options)(slice(None)).shape == (6, 5)
    assert denoiser.asked[0].shape == (3, 2)


def test_a_network_that_is_read_answers_once_for_equal_states_without_a_graph() -> None:
    asked = []

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(MASK + 1))

        def forward(self, x_t, t, topic=None):
            asked.append((len(x_t), self.training))
            return x_t[..., None] + t[:, None, None] * self.weight

    network, x_t = Network().train(), torch.full((3, 2), MASK)
    t, positions = torch.ones(3), torch.tensor([0, 3, 5])
    equal = read_logits(network, x_t, t, positions)
    told = read_logits(network, x_t, t, positions, {"topic": 1})
    later = read_logits(network, x_t, torch.tensor([1.0, 0.5, 1.0]), positions)
    assert asked == [(1, False), (3, False), (3, False)]
    assert torch.equal(equal, told)
    assert later[:, 0].tolist() == [MASK + 1.0, MASK + 0.5, MASK + 1.0]
    assert not equal.requires_grad
    assert network.training


def test_only_sequences_that_hold_a_row_are_asked_about_and_their_conditions_follow() -> None:
    x_init = torch.tensor([[0, MASK], [1, MASK], [2, MASK], [3, MASK]])
    model_kwargs = {"topic": torch.tensor([10, 11, 12, 13]), "scale": 2.0, "table": torch.zeros(7)}
    denoiser = Recording()
    state = SamplerState(PROCESS, denoiser, x_init=x_init, model_kwargs=model_kwargs, generator=seeded(0))
    t, s = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = state.logits(positions_of(state, 3, 7), t, s)(slice(None))
    assert denoiser.asked[0].tolist() == [[1, MASK], [3, MASK]]
    torch.testing.assert_close(logits[:, :4], torch.tensor([[1.0, 1.0, 0.8, 0.2], [3.0, 1.0, 0.6, 0.4]]))
    assert denoiser.cond[0]["topic"].tolist() == [11, 13]
    assert denoiser.cond[0]["scale"] == 2.0
    assert denoiser.cond[0]["table"].shape == (7,)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("positions", ["revealed", "masked"])
def test_a_sample_and_a_student_path_of_one_seed_and_the_same_times_are_the_same_tokens(
    positions, steps, prompted
) -> None:
    torch.manual_seed(0)
    network = DiT(DiTConfig(vocab_size=12, max_length=16, hidden_size=16, num_layers=1, num_heads=2, cond_size=8))
    torch.nn.init.normal_(network.output_layer.linear.weight)
    process = MaskedDiffusion(11)
    x_init = torch.where(torch.arange(16) < 5, torch.arange(6)[:, None], 11)
    start = (
        {"x_init": x_init, "attention_mask": torch.arange(16).expand(6, -1) < 14} if prompted else {"shape": (6, 16)}
    )
    path = IntermediateStateMatcher(process, num_steps=(steps,), positions=positions)(
        network, generator=seeded(3), **start
    )
    times = [1.0, *(float(step.s[0]) for step in path.steps)]
    sample = AncestralSampler(process, grid=times)(network.eval(), generator=seeded(3), return_history=True, **start)
    assert torch.equal(path.sequences, sample.sequences)
    assert sample.history is not None
    for step, before, after in zip(path.steps, sample.history, sample.history[1:], strict=False):
        assert torch.equal(step.x_t, before)
        assert torch.equal(step.x_s, after)
    torch.testing.assert_close(path.token_log_probs(), sample.log_probs)


@pytest.mark.parametrize(("shape", "x_init"), [(None, None), ((1, 1), torch.tensor([[MASK]]))])
def test_neither_or_both_of_shape_and_x_init_are_refused(shape, x_init) -> None:
    with pytest.raises(ValueError, match=r"shape.*x_init"):
        SamplerState(PROCESS, silent, shape, x_init=x_init)


@pytest.mark.parametrize("x_init", [torch.tensor([[1.0]]), torch.tensor([[1]]).int(), torch.tensor([1])])
def test_an_x_init_that_does_not_hold_ids_is_refused(x_init) -> None:
    with pytest.raises(TypeError, match="x_init"):
        SamplerState(PROCESS, silent, x_init=x_init)


def test_an_attention_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask has shape"):
        SamplerState(PROCESS, silent, (1, 3), attention_mask=torch.ones(1, 2, dtype=torch.bool))


def test_unmasking_draws_of_several_steps_are_those_of_each() -> None:
    state = SamplerState(PROCESS, silent, (3, 50), generator=seeded(5))
    probabilities = torch.tensor([0.2, 0.5, 1.0])
    together = state.unmask_draws_of_steps(4, probabilities)
    of_rows = state.unmask_draws_of_steps(4, probabilities[:, None].expand(3, 3))
    for k in range(3):
        assert bool((together[k] == state.unmask_draws(4 + k, probabilities[k].expand(3))).all())
    assert bool((together == of_rows).all())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (-1, 3)])
def test_a_shape_without_a_sequence_or_a_position_is_refused(shape) -> None:
    with pytest.raises(ValueError, match="in shape"):
        SamplerState(PROCESS, silent, shape)
    with pytest.raises(ValueError, match=r"\[0, 3\]"):
        SamplerState(PROCESS, silent, x_init=torch.zeros(0, 3, dtype=torch.long))


@pytest.mark.parametrize("shape", [3, (3,), (3, 2, 1), (2.0, 3), (True, 3), "ab"])
def test_a_shape_of_other_things_than_two_integers_is_refused(shape) -> None:
    with pytest.raises(TypeError):
        SamplerState(PROCESS, silent, shape)


@pytest.mark.parametrize("x_init", [np.array([[1, 4]]), [[1, 4]], "text"])
def test_an_x_init_that_is_no_tensor_is_refused_by_its_type(x_init) -> None:
    with pytest.raises(TypeError, match=type(x_init).__name__):
        SamplerState(PROCESS, silent, x_init=x_init)


def test_negative_ids_are_refused_wherever_they_stand() -> None:
    with pytest.raises(ValueError, match="-100"):
        SamplerState(
            PROCESS,
            silent,
            x_init=torch.tensor([[MASK, -100]]),
            attention_mask=torch.tensor([[True, False]]),
        )


@pytest.mark.parametrize("name", ["attention_mask", "generation_mask"])
def test_masks_are_bools_or_integers_that_say_the_same(name) -> None:
    x_init = torch.tensor([[MASK, MASK]])
    state = SamplerState(PROCESS, silent, x_init=x_init, **{name: torch.tensor([[1, 0]])})
    assert state.generation_mask.tolist() == [[True, False]]
    for mask in (torch.tensor([[0.0, -torch.inf]]), [[True, False]], np.ones((1, 2), dtype=bool)):
        with pytest.raises(TypeError, match=name):
            SamplerState(PROCESS, silent, x_init=x_init, **{name: mask})
    for mask in (torch.tensor([[2, 0]]), torch.ones(2, 2).bool(), torch.ones(1, 1, 2, 2).bool()):
        with pytest.raises(ValueError, match=name):
            SamplerState(PROCESS, silent, x_init=x_init, **{name: mask})


def test_the_attention_mask_reaches_denoisers_as_bools() -> None:
    state = SamplerState(PROCESS, silent, (1, 2), attention_mask=torch.tensor([[1, 0]]))
    assert state.attention_mask is not None
    assert state.attention_mask.dtype == torch.bool


def test_numbers_of_sequences_whose_draws_would_repeat_are_refused() -> None:
    """Counters of draws have 32 bits: sequence 2**30 of length 4 would draw what sequence 0 draws."""
    last = SamplerState(PROCESS, silent, (1, 4), generator=seeded(0), first_row=2**30 - 1)
    assert int(last.position_numbers[-1]) == 2**32 - 1
    for first_row in (2**30, 2**62, 2**70):
        with pytest.raises(ValueError, match=str(first_row)):
            SamplerState(PROCESS, silent, (1, 4), generator=seeded(0), first_row=first_row)
    for value in (1.0, True, None):
        with pytest.raises(TypeError, match="first_row"):
            SamplerState(PROCESS, silent, (1, 4), first_row=value)


def test_a_denoiser_of_another_vocabulary_is_refused_by_the_largest_id() -> None:
    state = SamplerState(PROCESS, silent, x_init=torch.tensor([[7, MASK]]), generator=seeded(0))
    with pytest.raises(ValueError, match="token id 7 is outside the 5 classes"):
        state.logits(positions_of(state, 1), torch.ones(1), torch.zeros(1))


def test_a_part_of_a_state_holds_the_same_sequences() -> None:
    x_init = torch.tensor([[0, MASK], [1, MASK], [2, MASK]])
    state = SamplerState(PROCESS, silent, x_init=x_init, attention_mask=torch.ones(3, 2).bool(), first_row=4)
    part = state.part(torch.tensor([2, 0]))
    assert part.tokens.tolist() == [[2, MASK], [0, MASK]]
    assert part.position_numbers.tolist() == [12, 13, 8, 9]


def test_a_device_may_be_named_with_its_index() -> None:
    """A process of several on CPUs has the device ``cpu:0``, which holds the tensors of ``cpu``."""
    x_init = torch.tensor([[1, MASK, 2]])
    assert SamplerState(PROCESS, silent, x_init=x_init, device=torch.device("cpu:0")).tokens.device == x_init.device
    with pytest.raises(ValueError, match="x_init is on cpu and device is meta"):
        SamplerState(PROCESS, silent, x_init=x_init, device="meta")
