"""transformers' Trainer with students, rows and arguments as its users have them."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_model
from students import CONFIG, LENGTH, Rows, answers, denoiser, trainer, weights_of
from torch import Tensor, nn
from transformers import (
    TrainerCallback,
)

from discrete_distill import DiDiInstruct, DiDiInstructConfig, as_denoiser
from discrete_distill.distillation.methods import AuxiliaryRatio, RolloutMMDConfig, with_changes
from discrete_distill.integrations import transformers as integration
from discrete_distill.integrations.trainer_parts import WrappedStudent
from discrete_distill.models import InBlocks, add_lora, load_denoiser
from discrete_distill.training import TrainingDiverged


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", ["dit", "bert"])
@pytest.mark.parametrize("ratio", ["auxiliary", "discriminator"])
def test_bf16_is_computed_by_every_network(kind: str, ratio: str, tmp_path: Path) -> None:
    config = CONFIG if ratio == "auxiliary" else DiDiInstructConfig.paper()
    made = trainer(tmp_path, kind, config, Rows(), bf16=True, max_steps=1)
    seen: dict[str, set[torch.dtype]] = {}
    for name in ("student", "teacher", ratio):
        network = made.model if name == "student" else getattr(made.method, name)
        layers = [
            layer
            for path, layer in network.named_modules()
            if isinstance(layer, nn.Linear) and "sigma_map" not in path and "head." not in path
        ]
        for layer in layers:
            layer.register_forward_hook(lambda _, __, out, name=name: seen.setdefault(name, set()).add(out.dtype))
    made.train()
    assert seen
    assert all(dtypes == {torch.bfloat16} for dtypes in seen.values()), seen
    assert {value.dtype for value in made.model.parameters()} == {torch.float32}


def test_padding_is_neither_generated_nor_learnt_from(tmp_path: Path) -> None:
    config = DiDiInstructConfig.paper(advantages={"group_size": 2})
    for prompt in (0, 2):
        made = trainer(tmp_path, "dit", config, Rows((8, 8, 3, 3, 6, 6, 5, 5), prompt), max_steps=2)
        method, rollouts = made.method, []
        draw = method.rollout

        def spy(draw: Any = draw, rollouts: list[Any] = rollouts, **options: Any) -> Any:
            rollouts.append(draw(**options))
            return rollouts[-1]

        method.rollout = spy  # type: ignore[method-assign]
        made.train()
        for rollout in rollouts:
            assert rollout.attention_mask is not None
            assert torch.equal(rollout.generation_mask, rollout.attention_mask & (torch.arange(LENGTH) >= prompt))
            assert set(rollout.attention_mask.sum(1).tolist()) <= {8, 3, 6, 5}
            assert (rollout.sequences[~rollout.attention_mask] == 0).all()
    padded, whole = Rows((8,)), Rows()  # a mask that hides nothing changes nothing
    batch = made.data_collator([padded[index] for index in range(8)])
    paths, reference = made._paths(batch)
    assert paths == {"batch_size": 8, "length": LENGTH}
    assert torch.equal(reference, whole.ids[:8])


@pytest.mark.parametrize("data", [Rows(), Rows((8, 8, 5, 5))], ids=["whole", "padded"])
def test_a_student_that_reads_by_blocks_walks_them_behind_the_rows(data: Rows, tmp_path: Path) -> None:
    made = trainer(tmp_path, "blocks", CONFIG, data, max_steps=3)
    before, seen, draw = weights_of(made.model), [], made.method.rollout

    def spy(**options: Any) -> Any:
        seen.append(draw(**options))
        return seen[-1]

    made.method.rollout = spy  # type: ignore[method-assign]
    made.train()
    assert isinstance(made.method.student, InBlocks)
    assert made.method.student.denoiser is made.model
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(made.model).items())
    rows = {tuple(row.tolist()) for row in torch.stack([data[index]["input_ids"] for index in range(len(data))])}
    for rollout in seen:
        clean = rollout.model_kwargs["clean"]
        assert {tuple(row.tolist()) for row in clean} <= rows
        assert torch.equal(clean, clean[::4].repeat_interleave(4, 0))


def test_a_student_learns_from_an_autoregressive_target(tmp_path: Path) -> None:
    config = DiDiInstructConfig.autoregressive(
        advantages={"group_size": 4}, paths={"num_steps": (2,), "step_conditioning": False}, log_ratio={"warmup": 1}
    )
    target = denoiser("causal")
    made = trainer(tmp_path, "bert", config, Rows((8, 5), prompt=2), target=target)
    before, kept = weights_of(made.model), weights_of(target)
    made.train()
    assert all("auxiliary_loss" in line for line in made.state.log_history[:-1])
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(made.model).items())
    assert all(torch.equal(value, kept[name]) for name, value in weights_of(target).items())


def test_a_wrapper_that_hides_blocks_is_refused() -> None:
    student = denoiser("blocks")
    with pytest.raises(ValueError, match=r"reads by blocks.*DataParallel"):
        WrappedStudent(nn.DataParallel(student), student)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "own"])
def test_foreign_students_are_saved_resumed_and_read_back(kind: str, tmp_path: Path) -> None:
    """Of BERT and ModernBERT, head and embedding are one tensor."""
    whole = trainer(tmp_path / "whole", kind)
    whole.train()
    cut = trainer(tmp_path / "cut", kind, save_strategy="steps", save_steps=2)
    cut.train()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    resumed = trainer(tmp_path / "cut", kind)
    resumed.train(resume_from_checkpoint=True)
    for mine, expected in ((resumed.model, whole.model), (resumed.averaged_student, whole.averaged_student)):
        for name, value in weights_of(mine).items():
            assert torch.equal(value, expected.state_dict()[name]), name
    resumed.save_student(tmp_path / "student")
    if kind == "own":
        read = denoiser("own")
        load_model(read.model, tmp_path / "student" / "model.safetensors")
    else:
        read = load_denoiser(tmp_path / "student")
        assert resumed.model.model.get_output_embeddings().weight is resumed.model.model.get_input_embeddings().weight
    assert torch.equal(answers(read), answers(whole.averaged_student))


@pytest.mark.parametrize("kind", ["dit", "bert", "peft"])
def test_students_of_low_rank_are_saved_merged(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="LoRA is an optional extra")
    teacher = denoiser("bert" if kind == "peft" else kind)
    if kind == "peft":
        config = peft.LoraConfig(target_modules=["query", "value"])
        student: Any = as_denoiser(peft.get_peft_model(copy.deepcopy(teacher.model), config))
    else:
        student = add_lora(copy.deepcopy(teacher))
    frozen = {name: value.clone() for name, value in student.named_parameters() if not value.requires_grad}
    settings = {"teacher": teacher, "student": student, "save_strategy": "steps", "save_steps": 2}
    made = trainer(tmp_path / "run", **settings)
    made.train()
    assert all(torch.equal(value, frozen[name]) for name, value in made.model.named_parameters() if name in frozen)
    made.save_student(tmp_path / "student")
    expected = answers(made.averaged_student)
    assert not torch.allclose(expected, answers(teacher), atol=1e-4)
    torch.testing.assert_close(answers(load_denoiser(tmp_path / "student")), expected, atol=1e-5, rtol=1e-5)


def without_dropout(network: torch.nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def test_gradient_checkpointing_with_dropout_is_refused(tmp_path: Path) -> None:
    """Paths would be drawn with dropout: rescored under the same weights they would have other probabilities."""
    with pytest.raises(ValueError, match="dropout"):
        trainer(tmp_path, "bert", gradient_checkpointing=True).train()


@pytest.mark.parametrize("kind", ["dit", "bert"])
def test_gradient_checkpointing_runs_blocks_again_and_changes_nothing(kind: str, tmp_path: Path) -> None:
    passes, weights = [], []
    for checkpointed in (False, True):
        made = trainer(tmp_path / str(checkpointed), kind, gradient_checkpointing=checkpointed)
        without_dropout(made.model)
        block = made.model.blocks[0] if kind == "dit" else made.model.model.bert.encoder.layer[0].attention
        loss_mask: list[int] = []
        block.register_forward_pre_hook(lambda *_, loss_mask=loss_mask: loss_mask.append(1))
        made.train()
        passes.append(len(loss_mask))
        weights.append(weights_of(made.model))
    assert passes[1] == 2 * passes[0]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4)


def test_what_has_no_meaning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        trainer(tmp_path).evaluate()
    with pytest.raises(ValueError, match="eval_strategy"):
        trainer(tmp_path, eval_strategy="steps")
    for name, value in (("max_steps", -1), ("length", 0), ("discriminator_every", 0), ("ema_decay", 1.0)):
        with pytest.raises(ValueError, match=name):
            trainer(tmp_path, **{name: value})
    for name, number in (("length", 8.0), ("discriminator_every", True), ("ratio_warmup_steps", 1.5)):
        with pytest.raises(TypeError, match=name):
            trainer(tmp_path, **{name: number})
    with pytest.raises(TypeError, match="as_denoiser"):
        trainer(tmp_path, "bert", student=denoiser("bert").model)


@pytest.mark.parametrize("kind", ["dit", "bert"])
def test_gradients_of_micro_batches_are_averaged(kind: str, tmp_path: Path) -> None:
    """The norm that the optimiser sees is that of the mean loss of four micro-batches."""
    made = trainer(tmp_path, kind, gradient_accumulation_steps=4, max_steps=1, max_grad_norm=1e9)
    parts: list[dict[str, Tensor]] = []
    compute = made.compute_loss

    def spy(*args: Any, **options: Any) -> Any:
        loss = compute(*args, **options)
        parameters = dict(made.model.named_parameters())
        gradients = torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
        parts.append({name: each for name, each in zip(parameters, gradients, strict=True) if each is not None})
        return loss

    made.compute_loss = spy  # type: ignore[method-assign]
    made.train()
    assert len(parts) == 4
    mean = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
    expected = torch.cat([each.flatten() for each in mean.values()]).norm()
    logged = next(line["grad_norm"] for line in made.state.log_history if "grad_norm" in line)
    assert logged == pytest.approx(float(expected), rel=1e-3)


class Rates(TrainerCallback):
    """The student's learning rate at each of its steps, and its weights."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.append(weights_of(kwargs["model"]))


def test_in_the_warm_up_of_the_ratio_the_student_has_no_update(tmp_path: Path) -> None:
    """Neither weight decay nor a loss that is not finite moves it; its schedule lies behind the warm-up."""
    warmup, steps = 3, 7
    config = with_changes(CONFIG, log_ratio={"warmup": warmup})
    made = trainer(
        tmp_path, "bert", config, max_steps=steps, weight_decay=0.5, warmup_steps=2, lr_scheduler_type="linear"
    )
    before, watch = weights_of(made.model), Rates()
    made.add_callback(watch)
    loss = made.method.student_loss

    def broken(*args: Any, **options: Any) -> Any:
        out = loss(*args, **options)
        return replace(out, loss=out.loss * torch.nan) if made.state.global_step < warmup else out

    made.method.student_loss = broken  # type: ignore[method-assign]
    auxiliary = weights_of(made.ratio_networks["auxiliary"])
    made.train()
    for index, weights in enumerate(watch.weights):
        same = all(torch.equal(value, before[name]) for name, value in weights.items())
        assert same == (index < warmup + 1)  # the first update is at the rate 0 of the student's own warm-up
        assert all(value.isfinite().all() for value in weights.values())
    expected = [0.0] * warmup + [1e-2 * each for each in (0, 1 / 2, 1, 1 / 2)]
    assert watch.rates == pytest.approx(expected)
    assert set(made.lr_scheduler.get_last_lr()) == {0.0}
    moved = weights_of(made.ratio_networks["auxiliary"])
    assert any(not torch.equal(moved[name], auxiliary[name]) for name in moved)
    state = next(iter(made.optimizer.state.values()))
    assert int(state["step"]) == steps - warmup
    assert int(made.average.n_averaged) == steps - warmup


class Broken(torch.autograd.Function):
    """The value of a loss, with a gradient that is not a number."""

    @staticmethod
    def forward(_: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_counted(what: str, parts: int, tmp_path: Path) -> None:
    """Weights, moments, schedule and average stay as they are, also where only the second micro-batch is broken."""
    bad, steps = 2, 5
    made = trainer(
        tmp_path,
        "dit",
        max_steps=steps,
        gradient_accumulation_steps=parts,
        weight_decay=0.5,
        lr_scheduler_type="linear",
    )
    loss, calls = made.method.student_loss, []

    def broken(*args: Any, **options: Any) -> Any:
        out = loss(*args, **options)
        calls.append(made.state.global_step)
        if made.state.global_step != bad or calls.count(bad) < parts:
            return out
        return replace(out, loss=out.loss * torch.nan if what == "loss" else Broken.apply(out.loss))

    made.method.student_loss = broken  # type: ignore[method-assign]
    watch, states = Rates(), []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments = copy.deepcopy(made.optimizer.state_dict()["state"])
            states.append((moments, made.lr_scheduler.last_epoch, int(made.average.n_averaged)))

    made.add_callback(watch)
    made.add_callback(Watch())
    made.train()
    for name, value in watch.weights[bad].items():
        assert torch.equal(value, watch.weights[bad - 1][name]), name
        assert watch.weights[-1][name].isfinite().all()
    assert any(not torch.equal(value, watch.weights[bad][name]) for name, value in watch.weights[bad + 1].items())
    torch.testing.assert_close(states[bad][0], states[bad - 1][0], atol=0.0, rtol=0.0)
    assert [state[1:] for state in states] == [(1, 1), (2, 2), (2, 2), (3, 3), (4, 4)]
    assert watch.rates == pytest.approx([1e-2 * (1 - done / steps) for done in (0, 1, 2, 2, 3)])
    counts = [line["student_skipped_updates"] for line in made.state.log_history if "student_skipped_updates" in line]
    assert counts == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_a_run_of_skipped_steps_ends(tmp_path: Path) -> None:
    made = trainer(tmp_path, "dit", max_steps=12)
    loss = made.method.student_loss
    made.method.student_loss = lambda *args, **options: replace(  # type: ignore[method-assign]
        loss(*args, **options), loss=loss(*args, **options).loss * torch.inf
    )
    with pytest.raises(TrainingDiverged, match="5 updates in a row"):
        made.train()


@pytest.mark.parametrize("ratio", ["auxiliary", "discriminator"])
def test_schedules_of_the_ratio_networks_end_with_their_updates(
    ratio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []

    class Spy(integration.ModuleOptimizer):
        def __init__(self, module: Any, config: Any, num_steps: int, *rest: Any) -> None:
            planned.append(num_steps)
            super().__init__(module, config, num_steps, *rest)

    monkeypatch.setattr(integration, "ModuleOptimizer", Spy)
    base = CONFIG if ratio == "auxiliary" else DiDiInstructConfig.paper()
    config = with_changes(base, log_ratio={"warmup": 2})
    made = trainer(tmp_path, "dit", config, Rows(), max_steps=5, gradient_accumulation_steps=2, discriminator_every=3)
    made.train()
    updates = 5 * AuxiliaryRatio().updates if ratio == "auxiliary" else 2
    assert planned == [updates]
    assert made.module_optimizers[ratio].scheduler.last_epoch == updates


def test_the_method_of_mmd_compares_with_the_rows(tmp_path: Path) -> None:
    config = RolloutMMDConfig.recommended(paths={"num_steps": CONFIG.paths.num_steps, "step_conditioning": False})
    teacher = denoiser("dit")
    before = weights_of(teacher)
    with pytest.raises(ValueError, match="train_dataset"):
        trainer(tmp_path, "dit", config, teacher=teacher)
    made = trainer(tmp_path, "dit", config, Rows(), teacher=teacher, max_steps=1)
    made.train()
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(made.model).items())


def test_the_student_of_a_method_that_is_told_its_step(tmp_path: Path) -> None:
    """The library's own network, checkpointed in micro-batches: every argument at once."""
    config = with_changes(CONFIG, paths={"step_conditioning": True})
    teacher = denoiser("dit")
    student = DiDiInstruct.make_student(teacher, config)
    made = trainer(
        tmp_path,
        "dit",
        config,
        Rows((8, 8, 8, 8, 5, 5, 5, 5)),
        teacher=teacher,
        student=student,
        bf16=True,
        gradient_checkpointing=True,
        gradient_accumulation_steps=2,
    )
    made.train()
    assert made.state.global_step == 4
    assert all(value.isfinite().all() for value in made.model.parameters())
