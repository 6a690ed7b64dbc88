"""A tiny run that is killed again and again, each time resumed in a fresh fork; prints JSON. See ``test_crashes.py``.

Forks share one import of torch. A moment is a number of executed lines of the loop, the checkpoints and what they call,
drawn at random; or a place in the middle of writing a file.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers.optimization  # noqa: F401  Once here, and not in every fork.
from accelerate import Accelerator
from torch import Generator, nn

from discrete_distill.training import CheckpointStore, LoopConfig, ModuleOptimizer, OptimizerConfig, TrainingLoop

torch.set_num_threads(1)
# Saving is watched line by line down to the standard library; networks are not.
WATCHED = ("/discrete_distill/training/", "/shutil.py", "/pathlib", "/json/", "/torch/serialization.py")


def train(directory: Path) -> list[float]:
    """Twelve steps of a small network with dropout and a moving average; a checkpoint after every second one."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    module_optimizer = ModuleOptimizer(
        network, OptimizerConfig(learning_rate=0.01, warmup_steps=3, ema_decay=0.9), 12, ACCELERATOR
    )

    def step(index: int, generator: Generator) -> dict[str, float]:
        x = torch.randn(8, 4, generator=generator)
        loss = (module_optimizer.network(x) - x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss.item(), **module_optimizer.step(loss)}

    config = LoopConfig(num_steps=12, seed=3, log_every=3, checkpoint_every=2, keep_checkpoints=2)
    TrainingLoop(config, directory, {"network": module_optimizer}, step, label="killed", quiet=True).run()
    states = (network.state_dict(), module_optimizer.averaged.state_dict())
    return [value for state in states for tensor in state.values() for value in tensor.flatten().tolist()]


ACCELERATOR = Accelerator(cpu=True)


class LineCounter:
    """Counts executed lines of watched files, and kills the process at one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.count = 0
        self.last = last

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in WATCHED):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def in_fork(body: Any) -> tuple[bool, Any]:
    """Whether a forked child was killed, and what ``body()`` returned in it otherwise."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(body()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status), json.loads(said) if said else None


def loss_mask(directory: Path, last: int | None) -> list[Any]:
    counter = LineCounter(last)
    sys.settrace(counter)
    weights = train(directory)
    sys.settrace(None)
    return [counter.count, weights]


def killed_while_writing(directory: Path, kept: int) -> list[float]:
    """The first state file is cut after ``kept`` bytes by the death of its writer."""
    genuine = Path.open

    def half_written(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = genuine(path, mode, *args, **kwargs)
        if path.name != "state.pt" or "w" not in mode:
            return stream
        whole = stream.write

        class Dying(io.RawIOBase):
            def write(self, block: Any) -> int:
                whole(bytes(block)[:kept])
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
                return 0

        return Dying()

    Path.open = half_written  # type: ignore[method-assign,assignment]
    return train(directory)


def main() -> None:
    folder = Path(sys.argv[1])
    _, (lines, whole) = in_fork(lambda: loss_mask(folder / "whole", None))
    moments = random.Random(0)
    kills, saving, fronts = 0, 0, []
    while kills < 20:
        last = moments.randrange(1, lines)
        run = folder / f"cut-{len(fronts)}"
        while kills < 20:  # Killed at random moments until one session of it gets through.
            killed, _ = in_fork(lambda run=run, last=last: loss_mask(run, last))
            if not killed:
                break
            kills += 1
            saving += any(run.glob("checkpoints/.step-*"))
            last = moments.randrange(1, lines)
        _, resumed = in_fork(lambda run=run: train(run))
        fronts.append(resumed == whole)
    written = []
    for kept in (0, 1, 700):
        run = folder / f"written-{kept}"
        killed, _ = in_fork(lambda run=run, kept=kept: killed_while_writing(run, kept))
        assert killed
        written.append(in_fork(lambda run=run: train(run))[1] == whole)
    left = [str(path) for run in folder.iterdir() for path in run.glob("checkpoints/.step-*")]
    latest = {run.name: CheckpointStore(run / "checkpoints").load_latest() is not None for run in folder.iterdir()}
    logs = {run.name: (run / "metrics.jsonl").read_text().count("\n") for run in folder.iterdir()}
    print(
        json.dumps(
            {
                "kills": kills,
                "while_saving": saving,
                "equal": fronts,
                "equal_after_half_a_file": written,
                "left_over": left,
                "whole_checkpoints": all(latest.values()),
                "lines_of_logs": sorted(set(logs.values())),
            }
        )
    )


if __name__ == "__main__":
    main()
