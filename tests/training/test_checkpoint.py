"""Checkpoints: whole or not there, and damage is named."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from discrete_distill.training import CheckpointStore


def state_of(step: int) -> dict[str, object]:
    return {"weights": torch.full((3,), float(step)), "name": "x"}


def filled(directory: Path, steps: list[int], keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(directory, keep=keep)
    for step in steps:
        store.save(step, state_of(step))
    return store


def test_the_newest_is_loaded(tmp_path: Path) -> None:
    found = filled(tmp_path, [5, 100, 20]).load_latest()
    assert found is not None
    assert found[0] == 100
    assert found[1]["weights"].tolist() == [100.0] * 3


def test_an_empty_or_absent_folder_holds_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "absent").load_latest() is None
    assert not (tmp_path / "absent").exists()


def test_only_the_newest_stay(tmp_path: Path) -> None:
    filled(tmp_path, [1, 2, 3, 4], keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = filled(tmp_path, [7])
    store.save(7, {"weights": torch.zeros(1)})
    found = store.load_latest()
    assert found is not None
    assert found[1]["weights"].tolist() == [0.0]


def step_of(store: CheckpointStore) -> int | None:
    """Step of the newest whole checkpoint, whose state must be that of the step."""
    found = store.load_latest()
    if found is None:
        return None
    assert found[1]["weights"].tolist() == [float(found[0])] * 3
    return found[0]


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


def cut_short(folder: Path) -> None:
    content = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(content[: len(content) // 2])


def lose_the_digest(folder: Path) -> None:
    (folder / "digest.json").unlink()


def empty_the_digest(folder: Path) -> None:
    (folder / "digest.json").write_text("")


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, lose_the_digest, empty_the_digest])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store = filled(tmp_path, [1, 2])
    damage(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        found = store.load_latest()
    assert found is not None
    assert found[0] == 1


def test_where_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 2])
    for folder in tmp_path.iterdir():
        cut_short(folder)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        assert store.load_latest() is None
    assert len(warned) == 2


def test_what_a_kill_left_half_written_is_passed_over_and_cleared(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    partial = tmp_path / ".step-00000002.partial"
    partial.mkdir()
    (partial / "state.pt").write_bytes(b"half")
    found = store.load_latest()
    assert found is not None
    assert found[0] == 1
    store.save(2, state_of(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


class TouchesAFile:
    """A pickle of it makes a file when it is run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    store = filled(tmp_path / "checkpoints", [1])
    folder = tmp_path / "checkpoints" / "step-00000001"
    content = pickle.dumps(TouchesAFile(tmp_path / "made"), protocol=2)
    (folder / "state.pt").write_bytes(content)
    (folder / "digest.json").write_text(json.dumps({"step": 1, "sha256": hashlib.sha256(content).hexdigest()}))
    with pytest.warns(UserWarning, match="damaged"):
        assert store.load_latest() is None
    assert not (tmp_path / "made").exists()


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep"):
        CheckpointStore(tmp_path, keep=0)


def damage(folder: Path) -> None:
    (folder / "state.pt").write_bytes(b"spoilt")


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    """Resumed from the start, or from an older one, a run keeps what it saves."""
    store = filled(tmp_path / "checkpoints", [100])
    damage(tmp_path / "checkpoints" / "step-00000100")
    fresh = CheckpointStore(tmp_path / "checkpoints", keep=1)
    with pytest.warns(UserWarning, match="damaged"):
        assert step_of(fresh) is None
    for step in (10, 20):
        fresh.save(step, state_of(step))
        found = CheckpointStore(tmp_path / "checkpoints", keep=1)
        with pytest.warns(UserWarning, match="damaged"):
            assert step_of(found) == step
    assert store.directory == fresh.directory


def test_a_damaged_checkpoint_between_whole_ones_does_not_displace_them(tmp_path: Path) -> None:
    filled(tmp_path / "checkpoints", [5, 10])
    damage(tmp_path / "checkpoints" / "step-00000010")
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    with pytest.warns(UserWarning, match="damaged"):
        assert step_of(store) == 5
    store.save(12, state_of(12))
    assert sorted(path.name for path in store.directory.iterdir()) == ["step-00000005", "step-00000012"]


@pytest.mark.parametrize("name", ["step-00000012.bak", "step-00000012 (copy)", "step-abc", "step-12", "step-"])
def test_folders_with_other_names_are_neither_read_nor_removed(name: str, tmp_path: Path) -> None:
    store = filled(tmp_path / "checkpoints", [11, 12])
    copy = tmp_path / "checkpoints" / name
    shutil.copytree(tmp_path / "checkpoints" / "step-00000012", copy)
    assert step_of(CheckpointStore(tmp_path / "checkpoints")) == 12
    for step in (13, 14, 15):
        store.save(step, state_of(step))
    assert (copy / "state.pt").exists()


def test_links_are_neither_read_nor_removed(tmp_path: Path) -> None:
    store = filled(tmp_path / "checkpoints", [3])
    elsewhere = filled(tmp_path / "elsewhere", [99]).directory / "step-00000099"
    (tmp_path / "checkpoints" / "step-00000099").symlink_to(elsewhere)
    assert step_of(store) == 3
    for step in (100, 101, 102):
        store.save(step, state_of(step))
    assert (elsewhere / "state.pt").exists()


@pytest.mark.parametrize(
    "content", ["null", "[]", "5", '"x"', "{}", "[" * 100_000, '{"step": 1, "sha256": 3}', "\ud800"]
)
def test_a_digest_that_is_no_digest_is_passed_over(content: str, tmp_path: Path) -> None:
    filled(tmp_path / "checkpoints", [1, 2])
    (tmp_path / "checkpoints" / "step-00000002" / "digest.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.warns(UserWarning, match="damaged"):
        assert step_of(CheckpointStore(tmp_path / "checkpoints")) == 1


def test_a_folder_renamed_to_another_step_is_passed_over(tmp_path: Path) -> None:
    filled(tmp_path / "checkpoints", [1, 2])
    (tmp_path / "checkpoints" / "step-00000002").rename(tmp_path / "checkpoints" / "step-99999999")
    with pytest.warns(UserWarning, match="damaged"):
        assert step_of(CheckpointStore(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, None])
def test_the_number_kept_is_a_count(keep: object, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match="keep"):
        CheckpointStore(tmp_path, keep=keep)  # type: ignore[arg-type]


def test_a_state_that_is_no_mapping_falls_back_to_the_one_before(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    store.save(2, [torch.zeros(1)])  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="step-00000002"):
        found = CheckpointStore(tmp_path).load_latest()
    assert found is not None
    assert found[0] == 1
