"""DiDi-Instruct in transformers' Trainer: both optimisers move, logs say what they should, resuming changes nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import TrainerCallback

from discrete_distill import DiDiInstruct, DiDiInstructConfig, Discriminator, Frame, MaskedDiffusion
from discrete_distill.distillation.methods import DiscriminatorRatio, Regularization
from discrete_distill.integrations.transformers import DiDiInstructTrainer, DiDiInstructTrainingArguments
from discrete_distill.models import DiT, DiTConfig

PROCESS = MaskedDiffusion(8)


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


class Rows(torch.utils.data.Dataset):
    """Texts of eight tokens, of which the first three are a prompt if so wanted."""

    def __init__(self, prompted: bool = False) -> None:
        g = torch.Generator().manual_seed(0)
        self.ids = torch.randint(8, (64, 8), generator=g)
        self.prompted = prompted

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"input_ids": self.ids[index]}
        return {**row, "prompt_mask": torch.arange(8) < 3} if self.prompted else row


class StopAt(TrainerCallback):
    """Ends training after a step, as an interruption would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control


def trainer(folder: Path, config: DiDiInstructConfig, data: Any = None, **settings: Any) -> DiDiInstructTrainer:
    torch.manual_seed(0)
    shape = DiTConfig(vocab_size=9, max_length=8, hidden_size=16, num_layers=1, num_heads=2, cond_size=8, dropout=0.1)
    teacher = DiT(shape)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.3)
    wants = isinstance(config.log_ratio, DiscriminatorRatio)
    arguments: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "ratio_learning_rate": 1e-2,
        "length": 8,
        "ema_decay": 0.5,
        "logging_steps": 2,
        "save_steps": 3,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return DiDiInstructTrainer(
        DiDiInstruct.make_student(teacher, config),
        DiDiInstructTrainingArguments(output_dir=str(folder), **(arguments | settings)),
        teacher=teacher,
        process=PROCESS,
        config=config,
        discriminator=Discriminator.from_denoiser(teacher, 1) if wants else None,
        auxiliary=None if wants else DiDiInstruct.make_auxiliary(teacher, config),
        train_dataset=data,
    )


CONFIGS = {
    "auxiliary": DiDiInstructConfig.recommended(
        advantages={"group_size": 4},
        paths={"num_steps": (2,)},
        log_ratio={"warmup": 1},
        regularization=Regularization(),
    ),
    "discriminator": DiDiInstructConfig.paper(),
    "controlled": DiDiInstructConfig.recommended(
        advantages={"group_size": 4}, paths={"num_steps": (2,)}, log_ratio={"warmup": 1}
    ),
}


def state_of(made: DiDiInstructTrainer) -> dict[str, Tensor]:
    networks = {"student": made.model, "average": made.averaged_student}
    networks |= {name: module_optimizer.module for name, module_optimizer in made.module_optimizers.items()}
    return {f"{key}.{name}": value.clone() for key, net in networks.items() for name, value in net.state_dict().items()}


def flat(network: Any) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


@pytest.mark.parametrize("ratio", CONFIGS)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(ratio: str, tmp_path: Path) -> None:
    """Student, average, ratio network: bit for bit; the log too."""
    data = None if ratio == "auxiliary" else Rows()
    whole = trainer(tmp_path / "whole", CONFIGS[ratio], data)
    before = {name: flat(net) for name, net in {"student": whole.model, **whole.ratio_networks}.items() if net}
    whole.train()
    after = state_of(whole)
    for name, weights in before.items():
        assert not torch.equal(flat(getattr(whole.method, name)), weights), name
    cut = trainer(tmp_path / "cut", CONFIGS[ratio], data)
    cut.add_callback(StopAt(4))
    cut.train()
    resumed = trainer(tmp_path / "cut", CONFIGS[ratio], data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for name, value in state_of(resumed).items():
        assert torch.equal(value, after[name]), name
    assert resumed.state.log_history[-2]["entropy"] == whole.state.log_history[-2]["entropy"]


def test_logs_have_the_metrics_of_the_method(tmp_path: Path) -> None:
    made = trainer(tmp_path, CONFIGS["discriminator"], Rows())
    made.train()
    lines = [line for line in made.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for name in ("discriminator_accuracy", "discriminator_gradient_norm", "entropy", "log_ratio", "learning_rate"):
        assert all(name in line for line in lines)


def test_a_saved_student_is_the_average_and_is_read_back(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", CONFIGS["discriminator"], Rows())
    made.train()
    made.save_model(str(tmp_path / "raw"))
    made.save_student(tmp_path / "student")
    x, t = torch.full((1, 8), 8), torch.ones(1)
    for folder, network in (("raw", made.model), ("student", made.averaged_student)):
        read = DiT.from_pretrained(tmp_path / folder).eval()
        assert torch.equal(read(x, t), network.eval()(x, t))
    assert Discriminator.from_pretrained(tmp_path / "student" / "discriminator").trainable_blocks == 1


def test_prompts_are_kept_and_shared_by_a_group(tmp_path: Path) -> None:
    made = trainer(tmp_path, CONFIGS["discriminator"], Rows(prompted=True))
    batch = [made.train_dataset[index] for index in range(8)]
    paths, reference = made._paths(made.data_collator(batch))
    x_init = paths["x_init"]
    assert torch.equal(x_init[:4, :3], Rows().ids[0, :3].expand(4, 3))
    assert torch.equal(x_init[4:, :3], Rows().ids[4, :3].expand(4, 3))
    assert (x_init[:, 3:] == 8).all()
    assert torch.equal(reference[:, :3], x_init[:, :3])
    made.train()


def test_the_student_stands_still_while_the_ratio_warms_up(tmp_path: Path) -> None:
    config = DiDiInstructConfig.recommended(
        advantages={"group_size": 4},
        paths={"num_steps": (2,)},
        log_ratio={"warmup": 6},
        regularization=Regularization(),
    )
    made = trainer(tmp_path, config)
    before = state_of(made)
    made.train()
    after = state_of(made)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("student"))
    assert made.module_optimizers["auxiliary"].scheduler.last_epoch == 6 * config.update_plan().updates["auxiliary"]


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="group_size 4 does not divide per_device_train_batch_size 6"):
        trainer(tmp_path, CONFIGS["discriminator"], Rows(), per_device_train_batch_size=6)
    with pytest.raises(ValueError, match="train_dataset"):
        trainer(tmp_path, CONFIGS["discriminator"])
    other = trainer(tmp_path, CONFIGS["auxiliary"])
    other.train()
    (tmp_path / "checkpoint-6" / "didi_instruct.pt").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint of a DiDiInstructTrainer"):
        trainer(tmp_path, CONFIGS["auxiliary"]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_fsdp_of_transformers_is_refused(tmp_path: Path) -> None:
    """By itself: under transformers before 5 the arguments write variables that later Accelerators obey."""
    with pytest.raises(ValueError, match="FSDP and DeepSpeed are not supported by this Trainer"):
        trainer(tmp_path, CONFIGS["auxiliary"], fsdp=True)


def test_importing_the_package_and_the_integrations_leaves_transformers_alone() -> None:
    code = "import sys, discrete_distill, discrete_distill.integrations; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def test_a_frame_stands_in_the_place_of_the_length(tmp_path: Path) -> None:
    """Every path of the Trainer keeps the tokens of the frame; arguments can be written as JSON."""
    config = DiDiInstructConfig.recommended(
        advantages={"group_size": 4}, paths={"num_steps": (2,)}, regularization=Regularization()
    )
    frame = Frame(4, prefix=[1, 2], suffix=[3])
    made = trainer(tmp_path, config, length=frame, max_steps=1, save_steps=100)
    seen = []
    rollout = made.method.rollout
    made.method.rollout = lambda *sizes, **given: seen.append(rollout(*sizes, **given)) or seen[-1]  # type: ignore[method-assign]
    made.train()
    (path,) = seen
    assert path.sequences.shape == (8, 7)
    assert bool((path.sequences[:, :2] == torch.tensor([1, 2])).all())
    assert bool((path.sequences[:, -1] == 3).all())
    assert path.generation_mask.sum(1).tolist() == [4] * 8
    assert json.loads(made.args.to_json_string())["length"] == {"length": 4, "prefix": [1, 2], "suffix": [3]}
