"""Stored trajectories: the same rows whenever and however often a run was stopped; others' stores are refused."""

import copy
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from discrete_distill import AncestralSampler, BlockwiseSampler, ConfidenceSampler, Frame, MaskedDiffusion
from discrete_distill.distillation.trajectories import GIVEN, PADDING
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.training import TrajectoryStore

V, MASK, LENGTH = 6, 5, 8
PROCESS = MaskedDiffusion(MASK)
SAMPLER = ConfidenceSampler(PROCESS, num_steps=4)


class Teacher(nn.Module):
    """Logits by token and position; it counts its calls, and fails at one of them if so wanted."""

    def __init__(self, seed: int = 0, fails_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(V, LENGTH, V, generator=torch.Generator().manual_seed(seed)))
        self.dropout = nn.Dropout(0.5)
        self.calls, self.fails_at = 0, fails_at

    def forward(self, x_t: Tensor, t: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        return self.dropout(self.weight[x_t, torch.arange(LENGTH)])


def prompts(rows: int) -> dict[str, Any]:
    place, row = torch.arange(LENGTH), torch.arange(rows)[:, None]
    real = place < LENGTH - row % 2
    return {"x_init": torch.where((place < row % 3) | ~real, 1, MASK), "attention_mask": real}


def record(folder: Path, teacher: Any = None, sampler: Any = SAMPLER, **given: Any) -> TrajectoryStore:
    return TrajectoryStore.record(
        folder, sampler, teacher or Teacher(), **{"batch_size": 4, "tokenizer": "words", **prompts(10), **given}
    )


def content(store: TrajectoryStore) -> Tensor:
    rows = store.rows(torch.arange(len(store)))
    return torch.stack((rows.x_0, rows.reveal_step))


def test_rows_are_recorded_once_and_read_again_without_a_call(tmp_path: Path) -> None:
    teacher = Teacher().train()
    store = record(tmp_path, teacher)
    assert len(store) == 10
    assert teacher.calls == 3 * 4
    assert teacher.training
    again = record(tmp_path, teacher)
    assert teacher.calls == 3 * 4
    assert torch.equal(content(store), content(again))
    assert torch.equal(content(store), content(TrajectoryStore(tmp_path)))


@pytest.mark.parametrize("call", [1, 6, 12])
def test_a_run_that_was_killed_goes_on_where_it_was(call: int, tmp_path: Path) -> None:
    whole = content(record(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "killed", Teacher(fails_at=call))
    with pytest.raises(ValueError, match="part"):
        TrajectoryStore(tmp_path / "killed")
    rest = Teacher()
    assert torch.equal(content(record(tmp_path / "killed", rest)), whole)
    assert rest.calls == 12 - (call - 1) // 4 * 4


def in_a_process(folder: Path, results: Any) -> None:
    results.put(content(record(folder)).tolist())


def test_several_processes_may_record_one_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    processes = [context.Process(target=in_a_process, args=(tmp_path / "shared", results)) for _ in range(3)]
    for each in processes:
        each.start()
    found = [results.get(timeout=60) for _ in processes]
    for each in processes:
        each.join()
    assert found == [content(record(tmp_path / "alone")).tolist()] * 3


@pytest.mark.parametrize("damage", [b"", b"half"])
def test_a_damaged_part_is_refused_by_a_reader_and_drawn_again(damage: bytes, tmp_path: Path) -> None:
    whole = content(record(tmp_path))
    (tmp_path / "part-000001" / "x_0.npy").write_bytes(damage)
    with pytest.raises(ValueError, match="part 1"):
        TrajectoryStore(tmp_path)
    assert torch.equal(content(record(tmp_path)), whole)


def other_weights() -> Teacher:
    teacher = Teacher()
    with torch.no_grad():
        teacher.weight[0, 0, 0] += 1e-3
    return teacher


OTHERS: dict[str, dict[str, Any]] = {
    "teacher": {"teacher": other_weights()},
    "tokenizer": {"tokenizer": "letters"},
    "sampler.num_steps": {"sampler": ConfidenceSampler(PROCESS, num_steps=5)},
    "sampler.temperature": {"sampler": ConfidenceSampler(PROCESS, num_steps=4, temperature=0.9)},
    "sampler.process.mask_token_id": {"sampler": ConfidenceSampler(MaskedDiffusion(4), num_steps=4)},
    "sampler was ConfidenceSampler and is Anc": {"sampler": AncestralSampler(PROCESS, num_steps=4)},
    "sampler was ConfidenceSampler and is Blo": {"sampler": BlockwiseSampler(SAMPLER, block_length=4)},
    "length": {"x_init": None, "attention_mask": None, "shape": (10, 7)},
    "rows": prompts(12),
    "prompts": {"x_init": prompts(10)["x_init"].masked_fill(prompts(10)["x_init"] == 1, 2)},
    "attention_mask": {"attention_mask": None},
    "seed": {"seed": 1},
    "batch_size": {"batch_size": 5},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_store_of_something_else_is_refused_and_left_as_it_is(what: str, tmp_path: Path) -> None:
    whole = content(record(tmp_path))
    with pytest.raises(ValueError, match=what):
        record(tmp_path, **copy.deepcopy(OTHERS[what]))
    assert torch.equal(content(TrajectoryStore(tmp_path)), whole)


def test_what_changes_no_token_may_change(tmp_path: Path) -> None:
    record(tmp_path)
    record(tmp_path, sampler=ConfidenceSampler(PROCESS, num_steps=4, check=True, chunk_rows=3))


def test_rows_of_the_data_set_say_what_was_given_and_what_is_padding(tmp_path: Path) -> None:
    store, given = record(tmp_path), prompts(10)
    loader = torch.utils.data.DataLoader(store, batch_size=10)
    (batch,) = loader
    assert torch.equal(batch["attention_mask"], given["attention_mask"])
    assert torch.equal(~batch["prompt_mask"], (given["x_init"] == MASK) & given["attention_mask"])
    assert torch.equal(batch["reveal_step"] >= 0, ~batch["prompt_mask"])
    assert torch.equal(torch.stack((batch["input_ids"], batch["reveal_step"])), content(store))
    assert set(batch["reveal_step"].unique().tolist()) == {PADDING, GIVEN, 0, 1, 2, 3}


def test_samples_are_rows_drawn_evenly(tmp_path: Path) -> None:
    store = record(tmp_path, x_init=None, attention_mask=None, shape=(5, Frame(LENGTH - 2, (1,), (2,))))
    rows = content(store)[0]
    drawn = store.sample(4000, generator=torch.Generator().manual_seed(0))
    assert bool((drawn.x_0[:, 0] == 1).all())
    assert bool((drawn.reveal_step[:, (0, -1)] == GIVEN).all())
    counts = torch.stack([(drawn.x_0 == row).all(1).sum() for row in rows])
    same = torch.stack([(rows == row).all(1).sum() for row in rows])
    assert bool(((counts / 4000 - same / 5).abs() < 5 * 0.4 / 4000**0.5).all())
    with pytest.raises(IndexError, match="5"):
        store.rows(torch.tensor([5]))


def test_a_first_draw_that_failed_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path, Teacher(fails_at=1), sampler=ConfidenceSampler(PROCESS, num_steps=5))
    assert len(record(tmp_path)) == 10


@pytest.mark.parametrize("teacher_id", [None, "small"])
def test_how_a_teacher_is_called_is_noted_beside_its_weights(teacher_id: str | None, tmp_path: Path) -> None:
    shape = {"vocab_size": V, "max_length": LENGTH, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "cond_size": 4}
    whole, blocks = DiT(DiTConfig(**shape)), DiT(DiTConfig(**shape, block_length=4))
    blocks.load_state_dict(whole.state_dict())
    record(tmp_path, whole, teacher_id=teacher_id)
    with pytest.raises(ValueError, match=r"teacher\.block_length was None and is 4"):
        record(tmp_path, blocks, teacher_id=teacher_id)
    file = tmp_path / "trajectories.json"
    saved = json.loads(file.read_text())
    earlier = {name: value for name, value in saved.items() if not name.startswith("teacher.")}
    file.write_text(json.dumps(earlier))
    record(tmp_path, whole, teacher_id=teacher_id)  # of a version that did not note it


def test_rows_with_conditions_follow_them(tmp_path: Path) -> None:
    def conditional(x_t: Tensor, t: Tensor, word: Tensor) -> Tensor:
        return 50.0 * nn.functional.one_hot(word, V)[:, None].expand(-1, LENGTH, -1).float()

    word = torch.arange(10) % MASK
    given = {"x_init": None, "attention_mask": None, "shape": (10, LENGTH), "teacher_id": "conditional"}
    store = record(tmp_path, conditional, model_kwargs={"word": word}, **given)
    assert torch.equal(content(store)[0], word[:, None].expand(-1, LENGTH))
    with pytest.raises(ValueError, match="word"):
        record(tmp_path, conditional, model_kwargs={"word": word.flip(0)}, **given)


def test_what_cannot_be_recorded_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    for error, given in (
        (TypeError, {"teacher": lambda x_t, t: torch.zeros(*x_t.shape, V)}),
        (ValueError, {"batch_size": 0}),
        (ValueError, {"seed": -1}),
        (ValueError, {"shape": (10, 8)}),
        (ValueError, {"x_init": None, "attention_mask": None}),
        (ValueError, {"attention_mask": torch.ones(4, LENGTH, dtype=torch.bool)}),
    ):
        with pytest.raises(error):
            record(folder, **given)  # type: ignore[arg-type]
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        TrajectoryStore(folder)
