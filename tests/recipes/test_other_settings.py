"""A run that is taken up again with other settings is refused by their names; a report states what was really used."""

import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from discrete_distill.recipes.owt import main

pytestmark = pytest.mark.slow

TINY = [
    "--data.length=16", "--precision=fp32", "--distill.batch-size=4", "--distill.method.group-size=2",
    "--distill.method.log-ratio-warmup=0", "--distill.loop.num-steps=2", "--distill.loop.checkpoint-every=1",
    "--discriminator.updates=1", "--discriminator.pool=4", "--discriminator.batch-size=2", "--evaluate.num-samples=2",
    "--evaluate.seeds", "0", "1", "--evaluate.steps", "2", "--evaluate.guided-steps", "2",
    "--evaluate.frontier-steps=2", "--evaluate.teacher-frontier-steps", "2", "--evaluate.batch-size=2",
]  # fmt: skip


def run(stage: str, output: Path, *flags: str) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return main([stage, f"--output={output}", "--name=run", *TINY, *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    assert run("all", output) == 0
    return output


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--distill.student.learning-rate=0.1", "learning_rate"),
        ("--distill.method.kl-coefficient=0.5", "kl_coefficient"),
        ("--distill.student.ema-decay=0", "ema_decay"),
        ("--distill.prior-guidance=0.5", "prior_guidance"),
        ("--seed=7", "seed"),
        ("--distill.loop.num-steps=1", "num_steps"),
    ],
)
def test_a_finished_run_is_not_reported_with_settings_that_it_did_not_have(
    flag: str, name: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = (finished / "run" / "student" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert run("all", finished, flag) == 2
    assert name in capsys.readouterr().err
    assert (finished / "run" / "student" / "model.safetensors").read_bytes() == student
    for stage in ("evaluate", "report"):
        if name in ("learning_rate", "kl_coefficient"):
            assert run(stage, finished, flag) == 0
            value = flag.split("=")[1]
            assert f"{name} = {value}\n" not in (finished / "run" / "report.md").read_text()


def test_a_discriminator_of_an_older_student_guides_no_newer_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    student = tmp_path / "run" / "student"
    assert (student / "discriminator" / "model.safetensors").exists()
    assert run("distill", tmp_path, "--distill.loop.num-steps=3", "--distill.student.warmup-steps=0") == 2
    assert run("distill", tmp_path, "--distill.loop.num-steps=20") == 0
    assert not (student / "discriminator").exists()
    capsys.readouterr()
    assert run("discriminator", tmp_path) == 2
    assert "student" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "discriminator")
    assert run("discriminator", tmp_path) == 0
