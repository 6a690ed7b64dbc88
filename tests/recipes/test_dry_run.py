"""Scaling: parameter counts of the paper's presets, and estimates of a dry run against what is counted."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from discrete_distill import DiDiInstructConfig, MaskedDiffusion
from discrete_distill.distillation.methods import (
    AlphaLossConfig,
    FeatureMMDConfig,
    IDLMConfig,
    Regularization,
    RolloutMMDConfig,
    SDTTConfig,
    VocabularyCredit,
    with_changes,
)
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.budget import EvaluationCounter
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.distill import Distillation
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.recipes.common.dry_run import (
    matmul_speed,
    memory_needed,
    seconds_per_step,
    step_cost,
)
from discrete_distill.recipes.common.network_shape import network_shape
from discrete_distill.recipes.owt import main
from discrete_distill.recipes.text.settings import PRESETS

SHAPE = DiTConfig(vocab_size=12, max_length=32, hidden_size=16, num_layers=2, num_heads=2, cond_size=8, dropout=0.0)


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("preset", "layers", "width", "millions"),
    [("small", 12, 768, 169), ("medium", 24, 1024, 424), ("large", 36, 1280, 872)],
)
def test_presets_have_the_papers_sizes(preset, layers, width, millions) -> None:
    config = PRESETS[preset]()
    model = config.teacher.model
    assert (model.num_layers, model.hidden_size, model.max_length, model.vocab_size) == (layers, width, 1024, 50258)
    assert int(network_shape(model).parameters / 1e6) == millions
    assert config.distill.method == DiDiInstructConfig.paper()
    assert (config.distill.loop.num_steps, config.distill.student.learning_rate) == (10_000, 1e-6)


def test_parameters_are_counted_without_making_the_network() -> None:
    assert network_shape(SHAPE).parameters == sum(parameter.numel() for parameter in DiT(SHAPE).parameters())


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        DiDiInstructConfig.paper(),
        DiDiInstructConfig.recommended(
            advantages={"group_size": 4}, paths={"num_steps": (4,)}, regularization=Regularization()
        ),
        DiDiInstructConfig.recommended(
            advantages={"group_size": 4},
            paths={"num_steps": (4,), "gradient_steps": 2},
            regularization=Regularization(),
        ),
        DiDiInstructConfig.recommended(
            advantages={"group_size": 4},
            paths={"num_steps": (4,)},
            credit=VocabularyCredit(),
            regularization=Regularization(),
        ),
        RolloutMMDConfig.recommended(paths={"num_steps": (4,)}),
        IDLMConfig.recommended(advantages={"group_size": 4}, paths={"num_steps": (4,)}),
        SDTTConfig(teacher_steps=8, rounds=1),
    ],
    ids=["paper", "defaults", "gradient steps", "vocabulary", "mmd", "idlm", "sdtt"],
)
def test_the_evaluations_of_a_step_are_those_that_are_counted(method, told) -> None:
    shape = replace(SHAPE, time_conditioning=told)
    if not isinstance(method, RolloutMMDConfig | SDTTConfig):
        method = with_changes(method, log_ratio={"warmup": 0})
    trained = isinstance(method, DiDiInstructConfig)  # the others train no discriminator
    config = DistillConfig(method=method, batch_size=8, discriminator=trained, discriminator_blocks=2)
    torch.manual_seed(0)
    stream = TokenStream(torch.randint(10, (500,)).numpy(), 32)
    trainee = Distillation(config, DiT(shape), stream, MaskedDiffusion(11), Accelerator(cpu=True))
    counter = EvaluationCounter(32)
    counter.watch(trainee.networks())
    for index in range(3):
        trainee.step(index, torch.Generator().manual_seed(index))
    assert counter.take() / 3 == pytest.approx(step_cost(config, shape).evaluations, rel=0.1)


@pytest.mark.parametrize(
    "method",
    [
        DiDiInstructConfig.recommended(
            advantages={"group_size": 4},
            paths={"num_steps": (4,), "step_conditioning": False},
            log_ratio={"warmup": 0, "step_conditioning": False},
            regularization=Regularization(),
        ),
        SDTTConfig(teacher_steps=8, rounds=1),
        AlphaLossConfig(),
        FeatureMMDConfig(),
    ],
    ids=["didi", "sdtt", "alpha", "feature-mmd"],
)
def test_networks_that_read_by_blocks_read_every_state_beside_clean_tokens(method) -> None:
    """Features are of clean sequences alone."""
    shape = replace(SHAPE, block_length=8)
    config = DistillConfig(method=method, batch_size=8, discriminator=False)
    torch.manual_seed(0)
    stream = TokenStream(torch.randint(10, (500,)).numpy(), 32)
    trainee = Distillation(config, DiT(shape), stream, MaskedDiffusion(11), Accelerator(cpu=True))
    counter = EvaluationCounter(32)
    counter.watch(trainee.networks())
    for index in range(3):
        trainee.step(index, torch.Generator().manual_seed(index))
    expected = step_cost(config, shape).evaluations
    assert counter.take() / 3 == pytest.approx(expected, rel=0.1)
    assert expected > step_cost(config, SHAPE).evaluations
    assert network_shape(DiT(shape)).block_length == 8


def test_memory_and_time_follow_sizes() -> None:
    config = PRESETS["small"]().distill
    model = PRESETS["small"]().teacher.model
    needed = memory_needed(config, model, 1024, half=True)
    assert needed["teacher"] == pytest.approx(4 * 169.6e6, rel=0.01)
    assert needed["student"] == pytest.approx(20 * 169.6e6, rel=0.01)
    assert needed["logits"] == 16 * 1024 * 50258 * 6
    doubled = memory_needed(replace(config, batch_size=32), model, 1024, half=True)
    # The all-mask state is evaluated once, whatever the batch.
    assert doubled["activations"] == pytest.approx(2 * needed["activations"], rel=0.05)
    parts = memory_needed(replace(config, batch_size=32, accumulate=2), model, 1024, half=True)
    assert parts["activations"] == pytest.approx(needed["activations"], rel=0.05)
    assert parts["logits"] == needed["logits"]
    once = seconds_per_step(config, model, 1024, 1e14)
    assert seconds_per_step(replace(config, batch_size=32), model, 1024, 1e14) == pytest.approx(2 * once, rel=0.05)
    assert seconds_per_step(config, model, 1024, 2e14) == pytest.approx(0.5 * once)
    assert matmul_speed(torch.device("cpu"), torch.float32, size=128, seconds=0.02) > 1e7


def test_a_dry_run_says_everything_and_writes_nothing(tmp_path, capsys) -> None:
    assert (
        main(
            [
                "--dry-run",
                "--preset=demo",
                "--discriminator.updates=160",
                f"--output={tmp_path}/runs",
                "--data.source=missing.txt",
            ]
        )
        == 0
    )
    said, distill = capsys.readouterr().out, PRESETS["demo"]().distill
    for part in (
        "would run: distill, discriminator, evaluate, report",
        "discriminator: ",
        "3.7M parameters",
        f"{distill.loop.num_steps} steps of {distill.batch_size} sequences",
        "memory on each device",
        "this machine",
        "time expected",
        "missing: no text at missing.txt",
    ):
        assert part in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_takes_the_shape_of_the_teacher_that_is_distilled(tmp_path, capsys) -> None:
    config = DiTConfig(vocab_size=2048, max_length=16, hidden_size=64, num_layers=1, num_heads=2, cond_size=8)
    DiT(config).save_pretrained(tmp_path / "teacher")
    (tmp_path / "a.txt").write_text("some words of a text\n" * 200)
    flags = [f"--teacher.path={tmp_path}/teacher", f"--output={tmp_path}/runs", "--data.length=16", "--dry-run"]
    flags.append(f"--data.source={tmp_path}/a.txt")
    with pytest.warns(UserWarning, match="tokenizer_fingerprint"):
        assert main(flags) == 0
    assert "1 layers, 64 wide" in capsys.readouterr().out
