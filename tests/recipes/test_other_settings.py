"""A run that is taken up again with other settings is refused by their names; a report states what was really used."""

import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from discrete_distill.recipes.distill import Distillation, DistillConfig
from discrete_distill.recipes.owt import main
from discrete_distill.recipes.settings import RecipeConfig

TINY = [
    "--data.length=16", "--precision=fp32", "--distill.batch-size=4", "--distill.method.group-size=2",
    "--distill.method.ratio-warmup=0", "--distill.loop.num-steps=2", "--distill.loop.checkpoint-every=1",
    "--guide.updates=1", "--guide.pool=4", "--guide.batch-size=2", "--evaluate.num-samples=2",
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
    assert run("guide", tmp_path) == 2
    assert "student" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "guide")
    assert run("guide", tmp_path) == 0


def test_schedules_end_where_the_updates_of_their_networks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from discrete_distill.models import DiT, DiTConfig
    from discrete_distill.process import MaskedDiffusion
    from discrete_distill.recipes.corpus import TokenStream
    from discrete_distill.recipes.environment import make_accelerator
    from discrete_distill.training import step_generator

    AcceleratorState._reset_state(reset_partial_state=True)
    import numpy as np

    config: DistillConfig = RecipeConfig().distill
    config.batch_size, config.method.group_size, config.method.ratio_warmup = 2, 2, 3
    config.method.ratio_updates, config.discriminator_every, config.loop.num_steps = 2, 3, 10
    for optimizer in (config.student, config.ratio):
        optimizer.schedule, optimizer.warmup_steps = "linear", 0
    teacher = DiT(DiTConfig(vocab_size=6, max_length=4, hidden_size=8, num_layers=1, num_heads=2, cond_size=8))
    stream = TokenStream(np.arange(64, dtype=np.int64) % 5, 4)
    distillation = Distillation(config, teacher, stream, MaskedDiffusion(5), make_accelerator("fp32"))
    before = [parameter.clone() for parameter in distillation.student.module.parameters()]
    for index in range(config.loop.num_steps):
        distillation.step(index, step_generator(0, index))
        if index < config.method.ratio_warmup:
            after = distillation.student.module.parameters()
            assert all(bool((one == two).all()) for one, two in zip(before, after, strict=True))
    for name, learner in distillation.parts().items():
        assert learner.scheduler.get_last_lr() == [0.0], name
        # One update less has not arrived there.
        assert learner.scheduler.lr_lambdas[0](learner.scheduler.last_epoch - 1) > 0.0, name
