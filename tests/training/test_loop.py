"""The loop: interrupted and resumed equals uninterrupted, bit for bit; its log loses and invents nothing."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Generator, nn

from discrete_distill.training import (
    LoopConfig,
    ModuleOptimizer,
    OptimizerConfig,
    TrainingDiverged,
    TrainingLoop,
    read_metrics,
)

Step = Callable[[int, Generator], dict[str, float]]


class Killed(Exception):
    """Stands for the process dying at a step."""


class Ledger:
    """A part that sums what it is given."""

    def __init__(self) -> None:
        self.total = 0.0

    def add(self, step: int, generator: Generator) -> dict[str, float]:
        self.total += torch.rand(1, generator=generator, dtype=torch.float64).item()
        return {"loss": float(step), "total": self.total}

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


def loop_of(directory: Path, parts: dict[str, Any], step: Step, **settings: Any) -> TrainingLoop:
    rank = settings.pop("rank", 0)
    return TrainingLoop(LoopConfig(**settings), directory, parts, step, label="test", quiet=True, rank=rank)


def network_run(directory: Path, *, die_at: int | None = None) -> tuple[ModuleOptimizer, list[dict[str, float]]]:
    """Twelve steps of a small network with dropout and a moving average, from where its folder left off."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1))
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=3, schedule="cosine", ema_decay=0.9)
    module_optimizer = ModuleOptimizer(network, config, 12, Accelerator(cpu=True))

    def step(index: int, generator: Generator) -> dict[str, float]:
        if index == die_at:
            raise Killed
        x = torch.randn(8, 4, generator=generator)
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss.item(), **module_optimizer.step(loss)}

    settings = {"num_steps": 12, "seed": 3, "log_every": 4, "checkpoint_every": 5, "keep_checkpoints": 2}
    return module_optimizer, loop_of(directory, {"network": module_optimizer}, step, **settings).run()


def flattened(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in (str(key), *flattened(value[key]))]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in flattened(item)]
    return [value.tolist() if isinstance(value, torch.Tensor) else value]


def timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


@pytest.mark.parametrize("die_at", [3, 7, 11])
def test_resumed_equals_uninterrupted_bit_for_bit(die_at: int, tmp_path: Path) -> None:
    """Weights, moving average, optimiser, and the log, though no checkpoint falls on a line of it."""
    whole, history = network_run(tmp_path / "whole")
    with pytest.raises(Killed):
        network_run(tmp_path / "cut", die_at=die_at)
    resumed, resumed_history = network_run(tmp_path / "cut")
    assert flattened(resumed.state_dict()) == flattened(whole.state_dict())
    assert timeless(resumed_history) == timeless(history)
    assert timeless(read_metrics(tmp_path / "cut")) == timeless(read_metrics(tmp_path / "whole"))


def test_a_damaged_checkpoint_costs_steps_but_changes_nothing(tmp_path: Path) -> None:
    whole, _ = network_run(tmp_path / "whole")
    with pytest.raises(Killed):
        network_run(tmp_path / "cut", die_at=11)
    (tmp_path / "cut" / "checkpoints" / "step-00000010" / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.warns(UserWarning, match="step-00000010 is damaged"):
        resumed, _ = network_run(tmp_path / "cut")
    assert flattened(resumed.state_dict()) == flattened(whole.state_dict())


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    network_run(tmp_path)
    again, history = network_run(tmp_path, die_at=0)
    assert [entry["step"] for entry in history] == [4.0, 8.0, 12.0]
    assert again.scheduler.last_epoch == 12


def test_lines_of_the_log_hold_means_since_the_line_before(tmp_path: Path) -> None:
    ledger = Ledger()
    history = loop_of(tmp_path, {"ledger": ledger}, ledger.add, num_steps=7, log_every=3).run()
    assert [(entry["step"], entry["loss"]) for entry in history] == [(3.0, 1.0), (6.0, 4.0), (7.0, 6.0)]
    assert read_metrics(tmp_path) == history


def test_the_seed_and_the_rank_decide_what_is_drawn(tmp_path: Path) -> None:
    totals = []
    for number, (seed, rank) in enumerate([(0, 0), (0, 0), (1, 0), (0, 1)]):
        ledger = Ledger()
        loop_of(tmp_path / str(number), {"ledger": ledger}, ledger.add, num_steps=3, seed=seed, rank=rank).run()
        totals.append(ledger.total)
    assert totals[0] == totals[1]
    assert len(set(totals)) == 3


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    ledger = Ledger()
    loop_of(tmp_path, {"ledger": ledger}, ledger.add, num_steps=3).run()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    other = Ledger()
    loop_of(tmp_path, {"ledger": other}, other.add, num_steps=5, rank=1).run()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def skipping(pattern: str) -> Step:
    """A step function whose updates are skipped where the pattern has an x."""
    count = 0

    def step(index: int, generator: Generator) -> dict[str, float]:
        nonlocal count
        count += pattern[index] == "x"
        return {"skipped_updates": float(count)}

    return step


def test_too_many_skipped_updates_in_a_row_stop_the_run(tmp_path: Path) -> None:
    step = skipping("..x.xxx...")
    with pytest.raises(
        TrainingDiverged, match=r"3 updates in a row had a loss or a gradient .* \(step 7\); lower the learning rate"
    ):
        loop_of(tmp_path, {"ledger": Ledger()}, step, num_steps=10, skip_limit=3).run()


def test_skipped_updates_apart_do_not_stop_it(tmp_path: Path) -> None:
    step = skipping("xx.xx.xx.x")
    history = loop_of(tmp_path, {"ledger": Ledger()}, step, num_steps=10, skip_limit=3).run()
    assert history[-1]["step"] == 10.0


def test_an_update_skipped_before_an_interruption_is_not_counted_after_it(tmp_path: Path) -> None:
    def step(index: int, generator: Generator) -> dict[str, float]:
        if index == 4 and not resumed:
            raise Killed
        return {"skipped_updates": 1.0 if index >= 1 else 0.0}

    settings = {"num_steps": 6, "checkpoint_every": 1, "skip_limit": 2}
    resumed = False
    with pytest.raises(Killed):
        loop_of(tmp_path, {"ledger": Ledger()}, step, **settings).run()
    resumed = True
    loop = loop_of(tmp_path, {"ledger": Ledger()}, step, **settings)
    loop.run()
    assert loop.window.consecutive_skips == 0
    state = torch.load(tmp_path / "checkpoints" / "step-00000005" / "state.pt", weights_only=True)
    assert state["window"]["consecutive_skips"] == 0


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    whole = json.dumps({"step": 1.0, "loss": 0.5})
    (tmp_path / "metrics.jsonl").write_text(f'{whole}\n{{"step": 2.0, "lo')
    assert read_metrics(tmp_path) == [{"step": 1.0, "loss": 0.5}]
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe", b"5", b"null", b"[1]", b"[" * 100_000, b'{"loss": 1}', b'{"step": "a"}']
)
def test_a_damaged_line_of_the_log_costs_that_line_alone(damage: bytes, tmp_path: Path) -> None:
    ledger = Ledger()
    loop_of(tmp_path, {"ledger": ledger}, ledger.add, num_steps=6, log_every=1, checkpoint_every=3).run()
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:2], damage, *lines[2:]]) + b"\n")
    again = Ledger()
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 3"):
        history = loop_of(tmp_path, {"ledger": again}, again.add, num_steps=6, log_every=1, checkpoint_every=3).run()
    assert [entry["step"] for entry in history] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert again.total == ledger.total


def test_the_log_of_a_run_without_checkpoints_is_set_aside(tmp_path: Path) -> None:
    ledger = Ledger()
    loop_of(tmp_path, {"ledger": ledger}, ledger.add, num_steps=3, log_every=1).run()
    before = (tmp_path / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "checkpoints")
    loop_of(tmp_path, {"ledger": Ledger()}, Ledger().add, num_steps=2, log_every=1).run()
    assert (tmp_path / "metrics.previous.jsonl").read_text() == before
    assert len(read_metrics(tmp_path)) == 2


def test_a_run_shorter_than_its_skip_limit_stops_too(tmp_path: Path) -> None:
    for steps, pattern in ((40, "x" * 40), (3, "xxx")):
        with pytest.raises(TrainingDiverged):
            loop_of(tmp_path / str(steps), {"ledger": Ledger()}, skipping(pattern), num_steps=steps).run()


def test_a_resumed_log_has_neither_cut_nor_doubled_lines(tmp_path: Path) -> None:
    ledger = Ledger()
    loop_of(tmp_path, {"ledger": ledger}, ledger.add, num_steps=6, log_every=2, checkpoint_every=3).run()
    file = tmp_path / "metrics.jsonl"
    expected = timeless(read_metrics(tmp_path))
    for newer in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        (newer / "state.pt").unlink()
    file.write_text(file.read_text()[:-5])
    again = Ledger()
    with pytest.warns(UserWarning, match="damaged"):
        loop_of(tmp_path, {"ledger": again}, again.add, num_steps=6, log_every=2, checkpoint_every=3).run()
    assert timeless([json.loads(line) for line in file.read_text().splitlines()]) == expected
    assert again.total == ledger.total


CHILD = """
import signal
if hasattr(signal, "SIGHUP"):  # The tests may run under nohup, which their children inherit.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_loop import Ledger, loop_of

ledger = Ledger()

def step(index, generator):
    if index == 3:
        print("waiting", flush=True)
        sys.stdin.readline()
    return ledger.add(index, generator)

loop_of(Path(sys.argv[1]), {"ledger": ledger}, step, num_steps=1000).run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_told_to_stop_saves_and_resumes(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "cut"), str(Path(__file__).parent)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    child.send_signal(number)
    _, errors = child.communicate("\n", timeout=600)
    assert child.returncode != 0
    assert "stopped at step 4; run again to resume" in errors
    whole, resumed = Ledger(), Ledger()
    loop_of(tmp_path / "whole", {"ledger": whole}, whole.add, num_steps=9).run()
    steps: list[int] = []

    def noted(index: int, generator: Generator) -> dict[str, float]:
        steps.append(index)
        return resumed.add(index, generator)

    loop_of(tmp_path / "cut", {"ledger": resumed}, noted, num_steps=9).run()
    assert steps == [4, 5, 6, 7, 8]
    assert resumed.total == whole.total


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    inside = []

    def step(index: int, generator: Generator) -> dict[str, float]:
        inside.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
        raise Killed

    with pytest.raises(Killed):
        loop_of(tmp_path, {"ledger": Ledger()}, step, num_steps=1).run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not set(inside) & set(before)


def test_lengths_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_steps.*0"):
        LoopConfig(num_steps=0)
    with pytest.raises(ValueError, match=r"log_every.*-1"):
        LoopConfig(num_steps=1, log_every=-1)


VERBOSE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_loop import Ledger
from discrete_distill.training import LoopConfig, TrainingLoop

ledger = Ledger()
config = LoopConfig(num_steps=2000, log_every=1)
TrainingLoop(config, Path(sys.argv[1]), {"ledger": ledger}, ledger.add, label="train").run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize("place", ["pipe", "/dev/full"])
def test_a_reader_that_goes_away_or_a_full_disk_behind_the_bar_does_not_stop_a_run(place: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", VERBOSE, str(tmp_path), str(Path(__file__).parent)]
    if place == "pipe":
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert child.stdout is not None
        child.stdout.read(1)
        child.stdout.close()
    else:
        with open(place, "w") as full:
            child = subprocess.Popen(command, stdout=full, stderr=full)
    assert child.wait() == 0
    assert read_metrics(tmp_path)[-1]["step"] == 2000.0
    assert loop_of(tmp_path, {}, Ledger().add, num_steps=2000).store.load_latest()[0] == 2000  # type: ignore[index]


def test_a_folder_that_is_removed_in_a_run_is_not_promised_to_be_resumed(tmp_path: Path) -> None:
    ledger, folder = Ledger(), tmp_path / "run"

    def step(index: int, generator: Generator) -> dict[str, float]:
        if index == 3:
            shutil.rmtree(folder)
        return ledger.add(index, generator)

    with pytest.raises(OSError, match=r"metrics\.jsonl") as caught:
        loop_of(folder, {"ledger": ledger}, step, num_steps=6, log_every=1, checkpoint_every=2).run()
    assert "resume" not in str(caught.value)
