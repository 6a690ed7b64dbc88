"""Models of transformers on two gloo processes: as copies and on one base, they have the gradients of one process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from discrete_distill.distributed.parallel import can_shard

WORKER = Path(__file__).parent / "external_ranks.py"
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("peft", reason="LoRA is an optional extra")
    file = tmp_path_factory.mktemp("external") / "found.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, str(WORKER), str(file)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(file.read_text())


def test_shares_and_micro_batches_have_the_gradient_of_the_batch(found: dict[str, Any]) -> None:
    """Prompts and padding of unlike lengths, in the loop of the recipe."""
    assert len(found["gaps"]) == 20 + 5 * can_shard()
    assert max(found["gaps"].values()) < 1e-6, found["gaps"]


@pytest.mark.skipif(not can_shard(), reason="PyTorch 2.6 cannot shard these networks")
def test_the_recipe_ends_with_the_same_networks_replicated_and_sharded(found: dict[str, Any]) -> None:
    assert found["recipe"] < 1e-4


def test_the_accelerate_example_ends_with_one_student(found: dict[str, Any]) -> None:
    for first, second in found["examples"].values():
        assert first == second
