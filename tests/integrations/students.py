"""Trainers of tiny students: the library's own, of transformers, and of a user's own making."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from discrete_distill import DiDiInstructConfig, Discriminator, MaskedDiffusion, as_denoiser
from discrete_distill.distillation.methods import MethodConfig, Regularization
from discrete_distill.integrations.transformers import DiDiInstructTrainer, DiDiInstructTrainingArguments
from discrete_distill.models import DiT, DiTConfig

MASK, V, LENGTH = 8, 9, 8
PROCESS = MaskedDiffusion(MASK)
CONFIG = DiDiInstructConfig.recommended(
    advantages={"group_size": 4},
    paths={"num_steps": (2,), "step_conditioning": False},
    log_ratio={"warmup": 0, "step_conditioning": False},
    regularization=Regularization(),
)
SIZE = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SPECIAL = {f"{name}_token_id": 0 for name in ("pad", "cls", "sep", "bos", "eos")}


def denoiser(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "bert":
        made: Any = as_denoiser(BertForMaskedLM(BertConfig(**SIZE, max_position_embeddings=16)))
    elif kind == "modernbert":
        made = as_denoiser(ModernBertForMaskedLM(ModernBertConfig(**SIZE, **SPECIAL, max_position_embeddings=16)))
    elif kind == "own":
        made = as_denoiser(nn.Sequential(nn.Embedding(V, 16), nn.GELU(), nn.Linear(16, V)), ids="positional")
    else:
        shape = {"vocab_size": V, "max_length": 8, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 8}
        made = DiT(DiTConfig(**shape, block_length={"blocks": 4, "causal": 1}.get(kind)))
    for name, parameter in made.named_parameters():
        if "norm" not in name.lower():
            nn.init.normal_(parameter, std=0.3)
    return made.eval()


class Rows(torch.utils.data.Dataset):
    """Random tokens; of ``lengths`` in turn, padded with 0, if there are any."""

    def __init__(self, lengths: tuple[int, ...] = (), prompt: int = 0) -> None:
        self.ids = torch.randint(1, 8, (64, LENGTH), generator=torch.Generator().manual_seed(0))
        self.lengths, self.prompt = lengths, prompt

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"input_ids": self.ids[index]}
        if self.lengths:
            real = torch.arange(LENGTH) < self.lengths[index % len(self.lengths)]
            row = {"input_ids": self.ids[index] * real, "attention_mask": real.long()}
        return {**row, "prompt_mask": torch.arange(LENGTH) < self.prompt} if self.prompt else row


def trainer(
    folder: Path,
    kind: Any = "dit",
    config: MethodConfig = CONFIG,
    data: Any = None,
    teacher: Any = None,
    target: Any = None,
    **settings: Any,
) -> DiDiInstructTrainer:
    teacher = denoiser(kind) if teacher is None else teacher
    auxiliary = copy.deepcopy(teacher if target is None else target)
    with torch.no_grad():
        for parameter in auxiliary.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    arguments: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "ratio_learning_rate": 1e-2,
        "length": LENGTH,
        "ema_decay": 0.5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    wants = "discriminator" in config.update_plan().order
    student = arguments.pop("student", None) or settings.pop("student", None) or copy.deepcopy(teacher)
    return DiDiInstructTrainer(
        student,
        DiDiInstructTrainingArguments(output_dir=str(folder), **(arguments | settings)),
        teacher=teacher,
        process=PROCESS,
        config=config,
        discriminator=Discriminator.from_denoiser(denoiser("dit"), 1) if wants else None,
        auxiliary=auxiliary if "auxiliary" in config.update_plan().order else None,
        target=target,
        train_dataset=data,
    )


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def answers(network: Any) -> Tensor:
    x = torch.tensor([[1, 2, MASK, 4, MASK, MASK, 3, 5]])
    with torch.no_grad():
        return copy.deepcopy(network).eval()(x, torch.ones(1))
