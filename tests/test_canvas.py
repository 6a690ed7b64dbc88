"""What moves on a canvas and what does not, and whom it asks for logits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from discrete_distill.canvas import Canvas, time_grid
from discrete_distill.process import MaskedDiffusion

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


def test_the_grid_descends_evenly_from_one_to_its_end() -> None:
    assert time_grid(4, device=torch.device("cpu")).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(2, device=torch.device("cpu"), end=0.5).tolist() == [1.0, 0.75, 0.5]
    with pytest.raises(ValueError, match=r"num_steps.*\b0\b"):
        time_grid(0, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"\b1\.0"):
        time_grid(1, device=torch.device("cpu"), end=1.0)


def test_an_unconditional_canvas_is_all_mask() -> None:
    canvas = Canvas(PROCESS, (2, 3), generator=seeded(0))
    assert canvas.z.tolist() == [[MASK] * 3] * 2
    assert bool(canvas.masked().all())
    assert canvas.batch == 2


def test_only_masks_at_real_positions_move() -> None:
    x_init = torch.tensor([[0, MASK, MASK, MASK]])
    attention_mask = torch.tensor([[True, True, True, False]])
    canvas = Canvas(PROCESS, None, x_init=x_init, attention_mask=attention_mask, generator=seeded(0))
    assert canvas.movable.tolist() == [[False, True, True, False]]
    canvas.write(torch.tensor([1]), torch.tensor([2]), torch.tensor([-0.5]))
    assert canvas.z.tolist() == [[0, 2, MASK, MASK]]
    assert canvas.masked().tolist() == [[False, False, True, False]]
    assert canvas.log_probs.tolist() == [[0.0, -0.5, 0.0, 0.0]]


def test_writing_leaves_earlier_states_and_the_prompt_as_they_were() -> None:
    x_init = torch.tensor([[0, MASK]])
    canvas = Canvas(PROCESS, None, x_init=x_init, generator=seeded(0))
    before = canvas.z
    canvas.write(torch.tensor([1]), torch.tensor([3]), torch.tensor([0.0]))
    assert before.tolist() == x_init.tolist() == [[0, MASK]]


def test_coins_are_the_seeds_alone_and_fall_with_their_probability() -> None:
    canvases = [Canvas(PROCESS, (rows, 50), generator=seeded(5)) for rows in (40, 400)]
    coins = [canvas.coins(3, torch.full((canvas.batch,), 0.3)) for canvas in canvases]
    assert bool((coins[1][:40] == coins[0]).all())
    frequency = coins[1].float().mean().item()
    assert abs(frequency - 0.3) < 5 * (0.21 / 20_000) ** 0.5
    assert not bool((coins[0] == canvases[0].coins(4, torch.full((40,), 0.3))).all())
    assert not bool(canvases[0].coins(0, torch.zeros(40)).any())
    assert bool(canvases[0].coins(0, torch.ones(40)).all())


def test_the_seed_is_one_draw_of_the_generator() -> None:
    first, again, other = (Canvas(PROCESS, (1, 1), generator=seeded(s)).seed for s in (1, 1, 2))
    assert int(first) == int(again) != int(other)


def test_one_all_mask_row_stands_for_all() -> None:
    canvas, denoiser = Canvas(PROCESS, (5, 3), generator=seeded(0)), Recording()
    rows = torch.tensor([2, 7, 14])
    logits = canvas.logits(denoiser, rows, torch.ones(5), torch.full((5,), 0.5))
    assert [tuple(x.shape) for x in denoiser.asked] == [(1, 3)]
    assert logits[:, 1].tolist() == [2.0, 1.0, 2.0]
    assert logits[:, 2:4].tolist() == [[1.0, 0.5]] * 3


@pytest.mark.parametrize("reason", ["steps differ", "prompt", "condition", "padding", "later"])
def test_it_does_not_where_rows_could_differ(reason) -> None:
    mask = torch.tensor([[True, True], [True, False]]) if reason == "padding" else None
    x_init = torch.tensor([[0, MASK], [1, MASK]]) if reason == "prompt" else None
    shape = None if reason == "prompt" else (2, 2)
    canvas = Canvas(PROCESS, shape, x_init=x_init, attention_mask=mask, generator=seeded(0))
    t = torch.full((2,), 0.9 if reason == "later" else 1.0)
    s = torch.tensor([0.5, 0.25 if reason == "steps differ" else 0.5])
    cond = {"topic": torch.tensor([1, 2])} if reason == "condition" else {}
    denoiser = Recording()
    logits = canvas.logits(denoiser, torch.tensor([1, 2]), t, s, **cond)
    assert denoiser.asked[0].tolist() == canvas.z.tolist()
    assert logits[:, 3].tolist() == s.tolist()
    if reason == "padding":
        assert denoiser.cond[0]["attention_mask"].tolist() == mask.tolist()


def test_only_sequences_that_hold_a_row_are_asked_about_and_their_conditions_follow() -> None:
    x_init = torch.tensor([[0, MASK], [1, MASK], [2, MASK], [3, MASK]])
    canvas, denoiser = Canvas(PROCESS, None, x_init=x_init, generator=seeded(0)), Recording()
    t, s = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    cond = {"topic": torch.tensor([10, 11, 12, 13]), "scale": 2.0, "table": torch.zeros(7)}
    logits = canvas.logits(denoiser, torch.tensor([3, 7]), t, s, **cond)
    assert denoiser.asked[0].tolist() == [[1, MASK], [3, MASK]]
    torch.testing.assert_close(logits[:, :4], torch.tensor([[1.0, 1.0, 0.8, 0.2], [3.0, 1.0, 0.6, 0.4]]))
    assert denoiser.cond[0]["topic"].tolist() == [11, 13]
    assert denoiser.cond[0]["scale"] == 2.0
    assert denoiser.cond[0]["table"].shape == (7,)


@pytest.mark.parametrize(("shape", "x_init"), [(None, None), ((1, 1), torch.tensor([[MASK]]))])
def test_neither_or_both_of_shape_and_x_init_are_refused(shape, x_init) -> None:
    with pytest.raises(ValueError, match=r"shape.*x_init"):
        Canvas(PROCESS, shape, x_init=x_init)


@pytest.mark.parametrize("x_init", [torch.tensor([[1.0]]), torch.tensor([[1]]).int(), torch.tensor([1])])
def test_an_x_init_that_does_not_hold_ids_is_refused(x_init) -> None:
    with pytest.raises(TypeError, match="x_init"):
        Canvas(PROCESS, None, x_init=x_init)


def test_an_attention_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask has shape"):
        Canvas(PROCESS, (1, 3), attention_mask=torch.ones(1, 2, dtype=torch.bool))


def test_coins_of_several_steps_are_those_of_each() -> None:
    canvas = Canvas(PROCESS, (3, 50), generator=seeded(5))
    probabilities = torch.tensor([0.2, 0.5, 1.0])
    together = canvas.coins_of_steps(4, probabilities)
    for k in range(3):
        assert bool((together[k] == canvas.coins(4 + k, probabilities[k].expand(3))).all())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (-1, 3)])
def test_a_shape_without_a_sequence_or_a_position_is_refused(shape) -> None:
    with pytest.raises(ValueError, match="in shape"):
        Canvas(PROCESS, shape)
    with pytest.raises(ValueError, match=r"\[0, 3\]"):
        Canvas(PROCESS, None, x_init=torch.zeros(0, 3, dtype=torch.long))


@pytest.mark.parametrize("shape", [3, (3,), (3, 2, 1), (2.0, 3), (True, 3), "ab"])
def test_a_shape_of_other_things_than_two_integers_is_refused(shape) -> None:
    with pytest.raises(TypeError):
        Canvas(PROCESS, shape)


@pytest.mark.parametrize("x_init", [np.array([[1, 4]]), [[1, 4]], "text"])
def test_an_x_init_that_is_no_tensor_is_refused_by_its_type(x_init) -> None:
    with pytest.raises(TypeError, match=type(x_init).__name__):
        Canvas(PROCESS, None, x_init=x_init)


def test_negative_ids_are_refused_wherever_they_stand() -> None:
    with pytest.raises(ValueError, match="-100"):
        Canvas(
            PROCESS,
            None,
            x_init=torch.tensor([[MASK, -100]]),
            attention_mask=torch.tensor([[True, False]]),
        )


@pytest.mark.parametrize("name", ["attention_mask", "writable"])
def test_masks_are_bools_or_integers_that_say_the_same(name) -> None:
    x_init = torch.tensor([[MASK, MASK]])
    canvas = Canvas(PROCESS, None, x_init=x_init, **{name: torch.tensor([[1, 0]])})
    assert canvas.movable.tolist() == [[True, False]]
    for mask in (torch.tensor([[0.0, -torch.inf]]), [[True, False]], np.ones((1, 2), dtype=bool)):
        with pytest.raises(TypeError, match=name):
            Canvas(PROCESS, None, x_init=x_init, **{name: mask})
    for mask in (torch.tensor([[2, 0]]), torch.ones(2, 2).bool(), torch.ones(1, 1, 2, 2).bool()):
        with pytest.raises(ValueError, match=name):
            Canvas(PROCESS, None, x_init=x_init, **{name: mask})


def test_the_attention_mask_reaches_denoisers_as_bools() -> None:
    canvas = Canvas(PROCESS, (1, 2), attention_mask=torch.tensor([[1, 0]]))
    assert canvas.attention_mask is not None
    assert canvas.attention_mask.dtype == torch.bool


def test_numbers_of_sequences_whose_draws_would_repeat_are_refused() -> None:
    """Counters of draws have 32 bits: sequence 2**30 of length 4 would draw what sequence 0 draws."""
    last = Canvas(PROCESS, (1, 4), generator=seeded(0), first_row=2**30 - 1)
    assert int(last.row_numbers[-1]) == 2**32 - 1
    for first_row in (2**30, 2**62, 2**70):
        with pytest.raises(ValueError, match=str(first_row)):
            Canvas(PROCESS, (1, 4), generator=seeded(0), first_row=first_row)
    for value in (1.0, True, None):
        with pytest.raises(TypeError, match="first_row"):
            Canvas(PROCESS, (1, 4), first_row=value)


def test_a_denoiser_of_another_vocabulary_is_refused_by_the_largest_id() -> None:
    canvas = Canvas(PROCESS, None, x_init=torch.tensor([[7, MASK]]), generator=seeded(0))
    with pytest.raises(ValueError, match="token id 7 is outside the 6 classes"):
        canvas.logits(lambda x, t: torch.zeros(*x.shape, 6), torch.tensor([1]), torch.ones(1), torch.zeros(1))


def test_a_part_of_a_canvas_holds_the_same_sequences() -> None:
    x_init = torch.tensor([[0, MASK], [1, MASK], [2, MASK]])
    canvas = Canvas(PROCESS, None, x_init=x_init, attention_mask=torch.ones(3, 2).bool(), first_row=4)
    part = canvas.part(torch.tensor([2, 0]))
    assert part.z.tolist() == [[2, MASK], [0, MASK]]
    assert part.row_numbers.tolist() == [12, 13, 8, 9]
    assert canvas.part(None) is canvas


@pytest.mark.parametrize("num_steps", [True, 2.0, float("nan"), None, "3"])
def test_a_number_of_steps_is_an_integer(num_steps) -> None:
    with pytest.raises(TypeError, match="num_steps"):
        time_grid(num_steps, device=torch.device("cpu"))


def test_a_device_may_be_named_with_its_index() -> None:
    """A process of several on CPUs has the device ``cpu:0``, which holds the tensors of ``cpu``."""
    x_init = torch.tensor([[1, MASK, 2]])
    assert Canvas(PROCESS, None, x_init=x_init, device=torch.device("cpu:0")).z.device == x_init.device
    with pytest.raises(ValueError, match="x_init is on cpu and device is meta"):
        Canvas(PROCESS, None, x_init=x_init, device="meta")
