"""Two gloo processes under ``torchrun``: what they compute together is what one process computes alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.torch_version import TorchVersion

from discrete_distill.distributed.parallel import can_shard
from discrete_distill.recipes.owt import main
from discrete_distill.training import ParallelConfig, shard

WORKER = Path(__file__).parent / "two_ranks.py"
SHARDED = pytest.mark.skipif(not can_shard(), reason="PyTorch 2.6 cannot shard these networks")
pytestmark = pytest.mark.distributed
PAIRS = [
    *("ddp discriminator", "ddp auxiliary"),
    *(pytest.param(f"fsdp {ratio}", marks=SHARDED) for ratio in ("discriminator", "auxiliary")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, str(WORKER), str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("pair", PAIRS)
def test_loss_and_gradients_are_those_of_one_process_with_the_whole_batch(found: dict[str, Any], pair: str) -> None:
    """In fp64, rewards scaled by the deviation of the whole batch; layer norms compute in fp32."""
    assert found["processes"] == 2
    gaps = found["one"][pair]
    assert gaps.pop("samples_differ") == 1.0
    sizes = [gaps.pop(name) for name in list(gaps) if name.endswith("_size")]
    assert min(sizes) > 1e-3
    assert len(gaps) == 4
    assert max(gaps.values()) < 1e-6


def test_ragged_shares_have_the_gradient_of_the_batch(found: dict[str, Any]) -> None:
    """Prompts of 0 to 7 tokens, of which both processes hold unlike many; in the recipe's loop and in the Trainer."""
    assert len(found["ragged"]) == 8
    assert max(found["ragged"].values()) < 1e-6


def test_batch_statistics_are_those_of_all_ranks_and_groups_stay_on_theirs(found: dict[str, Any]) -> None:
    assert found["advantages"]["batch"] < 1e-12
    assert found["advantages"]["group"] < 1e-12


@pytest.mark.parametrize("how", ["ddp_ddp", pytest.param("fsdp_fsdp", marks=SHARDED)])
def test_a_run_of_two_ranks_resumes_bit_for_bit(found: dict[str, Any], how: str) -> None:
    """Weights and moving average, with dropout, accumulation and exchange of gradients."""
    assert found["loops"][f"resumed_{how}"] == 0.0


@SHARDED
def test_a_checkpoint_does_not_depend_on_how_weights_are_laid_out(found: dict[str, Any]) -> None:
    assert found["loops"]["ddp_against_fsdp"] < 1e-4
    assert found["loops"]["resumed_fsdp_ddp"] < 1e-4


def test_checkpointed_activations_and_compiled_blocks_change_nothing(found: dict[str, Any]) -> None:
    assert found["loops"]["memory_options"] < 1e-5


def test_the_log_holds_means_over_ranks(found: dict[str, Any]) -> None:
    assert found["loops"]["rank_in_log"] == [0.5, 0.5]


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_update_on_all(found: dict[str, Any]) -> None:
    assert found["loops"]["skipped"] == [1, 1]
    assert found["loops"]["finite"]
    assert found["loops"]["ranks_alike"]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(found: dict[str, Any]) -> None:
    assert found["stop"]["messages"] == ["stop stopped at step 3; run again to resume"] * 2
    assert found["stop"]["saved"] == 3


def test_samples_and_prices_are_shared_out_and_gathered_in_order(found: dict[str, Any]) -> None:
    shared = found["sharding"]
    assert shared["order"] == [0, 1, 2, 3, 4]
    assert shared["empty_share"] == ["only"]
    assert shared["same_samples"]
    assert shared["same_counts"]
    assert shared["price_gap"] < 1e-6
    assert shared["ranks_draw_differently"]


def test_transformers_trainer_keeps_one_student_on_two_ranks(found: dict[str, Any]) -> None:
    assert found["trainer"] == {"alike": True, "kinds": ["DistributedDataParallel", "ReplicatedDenoiser"]}


@SHARDED
def test_shards_in_bf16_have_the_gradients_of_autocast_in_fp32(found: dict[str, Any]) -> None:
    assert found["half"]["denoiser"] > 0.999
    assert found["half"]["discriminator"] > 0.999


def test_the_accelerate_example_runs_on_two_ranks(found: dict[str, Any]) -> None:
    first, second = found["example"]["students"]
    assert first == second


def test_the_recipe_runs_sharded_and_measures_what_one_process_measures(found: dict[str, Any], folder: Path) -> None:
    assert found["recipe"]["codes"] == [0, 0]
    sys.path.insert(0, str(WORKER.parent))
    try:
        from recipe_flags import FLAGS
    finally:
        sys.path.pop(0)
    two = json.loads((folder / "run" / "evaluation.json").read_text())
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = [f"--output={folder}", "--name=run", f"--data.source={folder}/text.txt", f"--teacher.path={folder}/teacher"]
    assert main(["evaluate", *flags, *FLAGS]) == 0
    one = json.loads((folder / "run" / "evaluation.json").read_text())
    assert one["samples"] == two["samples"]
    for ours, theirs in zip(one["by_steps"], two["by_steps"], strict=True):
        assert ours["nats_per_token"] == pytest.approx(theirs["nats_per_token"], abs=1e-5)
        assert ours["diversity"] == theirs["diversity"]
    assert (folder / "run" / "report.md").stat().st_size > 0
    assert (folder / "run" / "student" / "discriminator" / "model.safetensors").exists()


def test_a_pytorch_that_cannot_shard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cu124"))
    with pytest.raises(ValueError, match=r"PyTorch 2\.6\.0.* cannot shard these networks"):
        shard(torch.nn.Linear(1, 1), torch.device("cpu"))


def test_unknown_strategies_and_backends_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy is one of .*, got 'tensor'"):
        ParallelConfig(strategy="tensor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"compile_backend is one of .*, or empty, got 'magic'"):
        ParallelConfig(compile_backend="magic")
    assert torch.distributed.is_initialized() is False
