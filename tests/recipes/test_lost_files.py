"""The recipe when something goes missing or wrong on the way: one line, and the last checkpoint is intact."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from discrete_distill.distillation.methods import DiDiInstruct, StepOutput
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.assets import asset
from discrete_distill.recipes.common.fingerprint import write_fingerprint
from discrete_distill.recipes.common.tokenizer import TextTokenizer
from discrete_distill.recipes.owt import main


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A run of a few words with the shipped tokenizer and a small teacher."""
    words = ["the state", "of the union", "is", "strong", "and", "our", "people", "are", "free", "tonight"]
    lines = [" ".join(words[(i * j) % 10] for j in range(1, 60)) for i in range(1, 61)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 8}
    torch.manual_seed(0)
    teacher = DiT(DiTConfig(vocab_size=2048, max_length=16, **shape))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    teacher.save_pretrained(tmp_path / "teacher")
    write_fingerprint(tmp_path / "teacher", TextTokenizer.load(asset("tokenizer.json")))
    return [
        f"--output={tmp_path}/runs",
        f"--data.source={tmp_path}/text.txt",
        f"--teacher.path={tmp_path}/teacher",
        "--name=run",
        "--data.length=16",
        "--precision=fp32",
        "--distill.batch-size=8",
        "--distill.accumulate=1",
        "--distill.method.group-size=4",
        "--distill.method.log-ratio-warmup=0",
        "--distill.loop.log-every=1",
        "--distill.loop.checkpoint-every=2",
        "--distill.student.schedule=constant",
    ]


def run(flags: list[str], steps: int, *more: str) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return main(["distill", *flags, f"--distill.loop.num-steps={steps}", *more])


def test_a_vanished_text_is_named_and_the_run_goes_on_when_it_is_back(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(flags, 2) == 0
    text = tmp_path / "text.txt"
    text.rename(tmp_path / "elsewhere.txt")
    assert run(flags, 4) == 2
    message = capsys.readouterr().err
    assert "error: " in message
    assert "--data.source" in message
    assert (tmp_path / "runs" / "run" / "checkpoints" / "step-00000002" / "state.pt").exists()
    (tmp_path / "elsewhere.txt").rename(text)
    assert run(flags, 4) == 0
    lines = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_tokens_are_made_again(damage: str, flags: list[str], tmp_path: Path) -> None:
    assert run(flags, 1) == 0
    (tokens,) = (tmp_path / "runs" / "tokens").rglob("train.npy")
    content = tokens.read_bytes()
    tokens.unlink() if damage == "gone" else tokens.write_bytes(content[:200])
    assert run(flags, 2) == 0
    assert tokens.read_bytes() == content


def test_a_run_that_diverges_is_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = DiDiInstruct.student_loss

    def poisoned(*args: Any, **kwargs: Any) -> StepOutput:
        out = genuine(*args, **kwargs)
        return replace(out, loss=out.loss * float("nan"))

    monkeypatch.setattr(DiDiInstruct, "student_loss", poisoned)
    assert run(flags, 9, "--distill.loop.skip-limit=3") == 2
    said = "error: 3 updates in a row had a loss or a gradient that was not finite (step 3); lower the learning rate"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("log_ratio", ["auxiliary", "discriminator"])
def test_a_batch_can_be_worked_off_in_parts(log_ratio: str, flags: list[str], tmp_path: Path) -> None:
    """Every network makes one update a step (the auxiliary three), and the same seed gives the same student."""
    paper = ["--distill.method.log-ratio=discriminator", "--distill.method.credit=sequence"]
    more = [
        "--distill.accumulate=2",
        "--distill.parallel.activation-checkpointing",
        "--distill.method.log-ratio-updates=3",
    ]
    more += (
        [*paper, "--distill.method.corruption-by=time", "--distill.method.discriminator-states=corrupted"]
        if log_ratio == "discriminator"
        else []
    )
    weights = []
    for name in ("one", "two"):
        assert run(flags, 2, f"--name={name}", "--distill.discriminator", *more) == 0
        weights.append((tmp_path / "runs" / name / "student" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    last = json.loads((tmp_path / "runs" / "one" / "metrics.jsonl").read_text().splitlines()[-1])
    for network in ("student", log_ratio, "discriminator"):
        assert last[f"{network}_gradient_norm"] > 0.0
    state = tmp_path / "runs" / "one" / "checkpoints" / "step-00000002" / "state.pt"
    saved = torch.load(state, weights_only=True)
    assert saved["student"]["scheduler"]["last_epoch"] == 2
    assert saved["discriminator"]["scheduler"]["last_epoch"] == 2
    if log_ratio == "auxiliary":
        assert saved["auxiliary"]["scheduler"]["last_epoch"] == 2 * 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--distill.loop.track=wandb"], "needs the package wandb: pip install wandb"),
        (["--distill.accumulate=3"], "cannot be worked off in 3 parts of whole groups of 4"),
        (
            ["--distill.parallel.strategy=fsdp", "--distill.method.reference=teacher"],
            "a sharded teacher cannot be sampled from",
        ),
    ],
)
def test_bad_choices_are_one_line(
    more: list[str], said: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "wandb" in said:
        import importlib.util

        if importlib.util.find_spec("wandb"):
            pytest.skip("wandb is installed here")
    assert run(flags, 2, *more) == 2
    message = capsys.readouterr().err.strip()
    assert said in message
    assert not (tmp_path / "runs").exists()
