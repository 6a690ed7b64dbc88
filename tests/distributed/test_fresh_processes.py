"""Processes that torchrun starts on a machine without a GPU, where nobody made an Accelerator before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipe_flags import FLAGS

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

SEEN = """
import json, sys
from discrete_distill.distributed.collectives import leave_processes
from discrete_distill.recipes.common.environment import make_accelerator
from discrete_distill.training import gather_in_order, step_generator
import torch

accelerator = make_accelerator("fp32")
draw = torch.rand(1, generator=step_generator(0, 0, rank=accelerator.process_index)).item()
seen = gather_in_order([(accelerator.num_processes, accelerator.is_main_process, draw)])
if accelerator.is_main_process:
    open(sys.argv[1], "w").write(json.dumps(seen))
leave_processes()
"""

LEFT = """
import sys
import torch.distributed as dist
from discrete_distill.recipes.owt import main

sys.exit(main(sys.argv[1:]) or dist.is_initialized())
"""

# The interpreter's lock changes hands only where it is released, so that threads of gloo still wait for it at the end.
LOCKED = """
import faulthandler, sys
import torch
import torch.distributed as dist
from discrete_distill.distributed.collectives import leave_processes

faulthandler.dump_traceback_later(300, exit=True)
for _ in range(10):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    sys.setswitchinterval(1000.0)
    for _ in range(20):
        dist.all_reduce(torch.zeros(1))
    leave_processes()
    assert not dist.is_initialized()
    sys.setswitchinterval(0.005)
"""

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the fault was that of machines without a GPU"),
]


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    return subprocess.run([*LAUNCH, *arguments], capture_output=True, text=True, env=environment)


def test_they_see_one_another_and_draw_apart(tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(SEEN)
    done = launch(str(tmp_path / "seen.py"), str(tmp_path / "seen.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    (first, second) = json.loads((tmp_path / "seen.json").read_text())
    assert first[:2] == [2, True]
    assert second[:2] == [2, False]
    assert first[2] != second[2]


def test_a_recipe_that_is_done_leaves_the_other_processes(tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    done = launch(str(tmp_path / "left.py"), "distill", "--dry-run", f"--output={tmp_path}", *FLAGS)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_recipe_writes_each_line_once(tmp_path: Path) -> None:
    done = launch("-m", "discrete_distill.recipes.owt", "distill", f"--output={tmp_path}", "--name=two", *FLAGS)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert len(set(steps)) == len(steps)
    assert (tmp_path / "two" / "student" / "model.safetensors").exists()


def test_leaving_does_not_wait_for_threads_that_wait_for_the_interpreter() -> None:
    done = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
