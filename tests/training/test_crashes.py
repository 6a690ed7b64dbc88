"""Nothing is lost: kills at random moments, disks that are full, folders that cannot be written, files that vanish."""

import errno
import json
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from discrete_distill.training import CheckpointStore, ModuleOptimizer, OptimizerConfig, TrainingLoop, read_metrics
from discrete_distill.training.loop import LoopConfig
from discrete_distill.training.stopping import stop_requests


@pytest.mark.skipif(sys.platform == "win32", reason="forks and signals of POSIX")
def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at random lines of the loop and of saving, and with a state file half written: the weights of a
    resumed run
    are bit for bit those of one that was left alone, and no line of its log is lost or doubled."""
    script = Path(__file__).parent / "killed_runs.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 20
    assert found["while_saving"] >= 5
    assert all(found["equal"])
    assert found["equal_after_half_a_file"] == [True, True, True]
    assert found["left_over"] == []
    assert found["whole_checkpoints"]
    assert found["lines_of_logs"] == [4]


class Counter:
    """A part with a state of a chosen size."""

    def __init__(self, size: int = 1) -> None:
        self.values = torch.zeros(size)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]


def count(directory: Path, num_steps: int, part: Counter, **settings: Any) -> None:
    def step(index: int, _: torch.Generator) -> dict[str, float]:
        part.values += 1.0
        return {"loss": 0.0}

    config = LoopConfig(**{"num_steps": num_steps, "log_every": 1, "checkpoint_every": 2, **settings})
    TrainingLoop(config, directory, {"part": part}, step, label="count", quiet=True).run()


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """A disk on which a file cannot grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_the_last_checkpoint_is_intact(tmp_path: Path) -> None:
    count(tmp_path, 2, Counter(100_000))
    with files_no_longer_than(100_000), pytest.raises(OSError, match=r"step-00000004 .*step-00000002, is whole"):
        count(tmp_path, 4, Counter(100_000))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    resumed = Counter(100_000)
    count(tmp_path, 4, resumed)
    assert resumed.values.tolist() == [4.0] * 100_000


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    count(tmp_path, 2, Counter())
    monkeypatch.setattr("discrete_distill.training.metrics.json.dumps", full)
    with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl .*No space left.*run again to resume"):
        count(tmp_path, 5, Counter(), log_every=3)
    monkeypatch.undo()
    again = Counter()
    count(tmp_path, 5, again, log_every=3)
    assert again.values.tolist() == [5.0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-only folders do not stop root, so the refusal is played."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    count(tmp_path, 2, Counter())
    monkeypatch.setattr(CheckpointStore, "_write", refuse)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*Permission denied.*step-00000002, is whole"):
        count(tmp_path, 4, Counter())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        count(tmp_path / "file", 2, Counter())


def test_data_that_vanish_in_a_step_leave_the_last_checkpoint(tmp_path: Path) -> None:
    data = tmp_path / "data.bin"
    data.write_bytes(b"1")
    part = Counter()

    def step(index: int, _: torch.Generator) -> dict[str, float]:
        part.values += float(data.read_bytes())
        if index == 2:
            data.unlink()
        return {"loss": 0.0}

    config = LoopConfig(num_steps=5, checkpoint_every=2)
    with pytest.raises(FileNotFoundError, match=r"data\.bin"):
        TrainingLoop(config, tmp_path, {"part": part}, step, label="vanish", quiet=True).run()
    found = CheckpointStore(tmp_path / "checkpoints").load_latest()
    assert found is not None
    assert (found[0], found[1]["part"]["values"].tolist()) == (2, [2.0])


def test_a_checkpoint_of_other_parts_is_refused(tmp_path: Path) -> None:
    count(tmp_path, 2, Counter())
    step = lambda index, generator: {"loss": 0.0}  # noqa: E731
    loop = TrainingLoop(LoopConfig(num_steps=4), tmp_path, {"other": Counter()}, step, label="other", quiet=True)
    with pytest.raises(ValueError, match="holds no other: it is of a run with other settings"):
        loop.run()


def test_a_step_saved_again_is_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two renames: the old one is found again."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(3, {"value": 1})
    monkeypatch.setattr("discrete_distill.training.checkpoint.shutil.rmtree", lambda *_, **__: None)
    genuine, calls = __import__("os").replace, []

    def dying(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == 2:
            raise SystemExit
        genuine(*paths)

    monkeypatch.setattr("discrete_distill.training.checkpoint.os.replace", dying)
    with pytest.raises(SystemExit):
        store.save(3, {"value": 2})
    monkeypatch.undo()
    assert CheckpointStore(tmp_path).load_latest() == (3, {"value": 1})


def test_a_loss_that_is_not_finite_is_skipped_even_if_its_gradient_is() -> None:
    torch.manual_seed(0)
    module_optimizer = ModuleOptimizer(nn.Linear(2, 1), OptimizerConfig(warmup_steps=0), 5, Accelerator(cpu=True))
    before = [parameter.clone() for parameter in module_optimizer.module.parameters()]
    metrics = module_optimizer.step(module_optimizer.network(torch.ones(1, 2)).sum() + float("inf"))
    assert metrics["skipped_updates"] == 1.0
    assert math.isnan(metrics["gradient_norm"])
    assert all(torch.equal(a, b) for a, b in zip(module_optimizer.module.parameters(), before, strict=True))
    assert module_optimizer.step(module_optimizer.network(torch.ones(1, 2)).sum())["skipped_updates"] == 1.0


def test_micro_batches_add_up_to_the_batch() -> None:
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    weights = []
    for parts in (1, 4):
        torch.manual_seed(0)
        module_optimizer = ModuleOptimizer(nn.Linear(2, 1), OptimizerConfig(warmup_steps=0), 5, Accelerator(cpu=True))
        for part in x.chunk(parts):
            module_optimizer.backward(module_optimizer.network(part).square().mean() / parts)
        norm = module_optimizer.update()["gradient_norm"]
        weights.append((norm, *nn.utils.parameters_to_vector(module_optimizer.module.parameters()).tolist()))
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


def test_a_second_interruption_is_obeyed_at_once_but_not_the_echo_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with stop_requests() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        now[0] = 5.0
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="last checkpoint is whole"):
            signal.raise_signal(signal.SIGINT)


def test_the_log_of_a_resumed_run_is_replaced_at_once(tmp_path: Path) -> None:
    count(tmp_path, 2, Counter())
    count(tmp_path, 4, Counter())
    assert [line["step"] for line in read_metrics(tmp_path)] == [1.0, 2.0, 3.0, 4.0]
    assert not list(tmp_path.glob("*.partial"))
