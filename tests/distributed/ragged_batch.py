"""One step on one batch of ragged prompts, whole, in micro-batches, or in shares of processes: its gradients.

Whatever a method draws depends here on the row alone, so that the same batch is the same however it is cut up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from transformers import TrainerCallback

from discrete_distill import DiDiInstruct, DiDiInstructConfig, Discriminator, MaskedDiffusion, Networks
from discrete_distill.distillation.methods import (
    AuxiliaryRatio,
    CorruptionByParts,
    DataKL,
    PathKL,
    Regularization,
    TokenCredit,
)
from discrete_distill.distillation.rollout import Rollout
from discrete_distill.distributed.parallel import gathered
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import BetaTime
from discrete_distill.process.masking import Corruption
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.distill import Distillation
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.training import OptimizerConfig, ParallelConfig, step_generator

VOCAB, LENGTH, BATCH, GROUP, MASK = 9, 8, 16, 2, 8
POSITIONS = torch.arange(LENGTH)


def rows_of_batch(padding: int = 0) -> dict[str, Tensor]:
    """Prompts of 0 to 7 tokens, the same within a group; every third group is padded with ``padding``."""
    g = Generator().manual_seed(3)
    groups = BATCH // GROUP
    ids = torch.randint(VOCAB - 1, (groups, LENGTH), generator=g)
    prompt = torch.tensor([0, 7, 3, 1, 0, 6, 2, 5])[:, None] > POSITIONS
    real = torch.tensor([8, 8, 5, 8, 8, 7, 8, 8])[:, None] > POSITIONS
    ids = torch.where(real, ids, padding)
    rows = {"input_ids": ids, "prompt_mask": prompt & real, "attention_mask": real}
    return {name: value.repeat_interleave(GROUP, dim=0) for name, value in rows.items()}


class DrawsOfRows(MaskedDiffusion):
    """Hides what the row says, not what a generator says."""

    def _hidden(self, x: Tensor, generation_mask: Tensor | None) -> Tensor:
        chosen = (x * 3 + POSITIONS) % 2 == 0
        return chosen if generation_mask is None else chosen & generation_mask

    def corrupt(self, x: Tensor, t: Tensor, *, generation_mask: Tensor | None = None, generator: Any = None) -> Tensor:
        return torch.where(self._hidden(x, generation_mask), self.mask_token_id, x)

    def draw_corruption(self, x: Tensor, *, generation_mask: Tensor | None = None, **_: Any) -> Corruption:
        half = torch.full((len(x),), 0.5)
        return Corruption(self.corrupt(x, half, generation_mask=generation_mask), half, 1.0 / half)


def networks(config: DiDiInstructConfig) -> dict[str, Any]:
    torch.manual_seed(1)
    shape = DiTConfig(vocab_size=VOCAB, max_length=LENGTH, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)
    teacher = DiT(shape)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.3)
    made: dict[str, Any] = {"teacher": teacher.double(), "student": DiDiInstruct.make_student(teacher, config)}
    if isinstance(config.log_ratio, AuxiliaryRatio):
        made["auxiliary"] = DiDiInstruct.make_auxiliary(teacher, config)
    else:
        made["discriminator"] = in_double(Discriminator.from_denoiser(teacher, 1))
    for name in ("student", "auxiliary"):
        for parameter in made[name].parameters() if name in made else ():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def in_double(network: Discriminator) -> Discriminator:
    """In evaluation mode: in training, each call takes a step of the power iteration of its head's spectral norm."""
    network.double().eval()
    network.logits_of_features = lambda h: network.head(h).squeeze(-1)  # type: ignore[method-assign]
    return network


def config_of(ratio: str, baseline: Any = "leave_one_out") -> DiDiInstructConfig:
    """Every term of the losses; statistics of the whole batch."""
    changes: dict[str, Any] = {
        "paths": {"num_steps": (1,), "step_conditioning": False},
        "advantages": {"group_size": GROUP, "baseline": baseline, "scale": "batch", "clip": 1.2},
        "regularization": Regularization(
            path_kl=PathKL(coefficient=0.3), data_kl=DataKL(coefficient=0.4), entropy_coefficient=0.2
        ),
    }
    if ratio == "auxiliary":
        return DiDiInstructConfig.recommended(
            log_ratio=AuxiliaryRatio(updates=1, warmup=0, step_conditioning=False),
            credit=TokenCredit(window=1, corruption=CorruptionByParts(num_parts=1)),
            **changes,
        )
    half = BetaTime(0.5, 0.5 + 1e-12, a=1.0, b=1.0)
    return DiDiInstructConfig.paper(credit={"corruption": {"time_distribution": half}}, **changes)


def draw_tokens_of_rows(method: DiDiInstruct) -> None:
    """Every path leads to tokens that prompt, place and row of the group say."""
    draw = method.rollout

    def forced(*, x_init: Tensor, attention_mask: Tensor, tokens: Tensor | None = None, **options: Any) -> Rollout:
        kept = torch.where((x_init == MASK) | ~attention_mask, 0, x_init).sum(1, keepdim=True)
        place = torch.arange(len(x_init))[:, None] % GROUP
        drawn = torch.where(x_init == MASK, (kept + POSITIONS * (1 + place) + place) % (VOCAB - 1), x_init)
        assert tokens is None or torch.equal(tokens, drawn)
        return draw(x_init=x_init, attention_mask=attention_mask, tokens=drawn, **options)

    method.rollout = forced  # type: ignore[method-assign]


def share_of(rank: int, processes: int, parts: int, padding: int) -> list[dict[str, Tensor]]:
    """The micro-batches of one process."""
    rows = {name: value.chunk(processes)[rank].chunk(parts) for name, value in rows_of_batch(padding).items()}
    return [{name: value[number] for name, value in rows.items()} for number in range(parts)]


class RaggedDistillation(Distillation):
    """The recipe's loop, on given micro-batches."""

    def given(self, micro_batches: list[dict[str, Tensor]]) -> RaggedDistillation:
        self.micro_batches, self._asked = micro_batches, 0
        draw_tokens_of_rows(self.method)
        return self

    def _rollout(self, index: int, part: int, generator: Generator, tokens: Tensor | None = None) -> Rollout:
        rows = self.micro_batches[part]
        free = ~rows["prompt_mask"] & rows["attention_mask"]
        x_init = torch.where(free, MASK, rows["input_ids"])
        return self.method.rollout(
            x_init=x_init,
            attention_mask=rows["attention_mask"],
            reference=rows["input_ids"],  # read by a student of blocks
            generator=generator,
            tokens=tokens,
        )

    def reference(self, size: int, generator: Generator) -> Tensor:
        self._asked += 1
        return self.micro_batches[(self._asked - 1) % len(self.micro_batches)]["input_ids"]


def gradients_of_the_loop(
    config: DiDiInstructConfig,
    parts: int,
    *,
    rank: int = 0,
    processes: int = 1,
    padding: int = 0,
    made: dict[str, Any] | None = None,
    sharing: Any = "copies",
    strategy: Any = "ddp",
) -> dict[str, Tensor]:
    made = networks(config) if made is None else made
    settings = DistillConfig(
        method=config,
        batch_size=BATCH // processes,
        accumulate=parts,
        student=OptimizerConfig(gradient_clip=0.0),
        ratio=OptimizerConfig(gradient_clip=0.0, warmup_steps=0),
        discriminator="discriminator" in made,
        discriminator_blocks=1,
        sharing=sharing,
        parallel=ParallelConfig(strategy=strategy),
    )
    stream = TokenStream(np.arange(100, dtype=np.uint16) % 5, LENGTH)
    with patch("discrete_distill.recipes.common.distill.make_networks", lambda *_, **__: Networks(**made)):
        loop = RaggedDistillation(settings, made["teacher"], stream, DrawsOfRows(MASK), Accelerator(cpu=True))
    if "discriminator" in made:
        made["discriminator"].eval()
    loop.given(share_of(rank, processes, parts, padding))
    found: dict[str, Tensor] = {}
    for name, module_optimizer in loop.parts().items():
        module_optimizer.optimizer.register_step_pre_hook(
            lambda *_, name=name, net=module_optimizer.module: found.update(grads(name, net))
        )
    loop.step(0, step_generator(0, 0, rank=rank))
    return found


def grads(name: str, network: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{path}": gathered(each.grad).clone()
        for path, each in network.named_parameters()
        if each.grad is not None
    }


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        network = kwargs["model"]
        self.found |= grads("student", getattr(network, "module", network))


def gradients_of_the_trainer(
    config: DiDiInstructConfig, parts: int, folder: Path, *, rank: int = 0, processes: int = 1, padding: int = 0
) -> dict[str, Tensor]:
    from discrete_distill.integrations.transformers import DiDiInstructTrainer, DiDiInstructTrainingArguments

    micro_batches = share_of(rank, processes, parts, padding)

    class Given(DiDiInstructTrainer):
        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            assert num_batches == parts
            return super().get_batch_samples(iter(micro_batches), num_batches, device)

        def _make_method(self, ratio_networks: Any) -> DiDiInstruct:
            method = super()._make_method(ratio_networks)
            draw_tokens_of_rows(method)
            return method

    rows = rows_of_batch()
    data = [{name: value[number] for name, value in rows.items()} for number in range(BATCH)]
    made, watch = networks(config), Gradients()
    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    backend = {"ddp_backend": "gloo"} if processes > 1 else {}
    trainer = Given(
        made["student"],
        DiDiInstructTrainingArguments(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=BATCH // parts // processes,
            gradient_accumulation_steps=parts,
            learning_rate=1e-6,
            ratio_learning_rate=3e-4,
            max_grad_norm=0.0,
            use_cpu=True,
            **quiet,
            **backend,
        ),
        teacher=made["teacher"],
        process=DrawsOfRows(MASK),
        config=config,
        discriminator=made.get("discriminator"),
        auxiliary=made.get("auxiliary"),
        train_dataset=data,  # type: ignore[arg-type]
        callbacks=[watch],
    )
    trainer.create_optimizer_and_scheduler(1)
    for name, module_optimizer in trainer.module_optimizers.items():
        module_optimizer.optimizer.register_step_pre_hook(
            lambda *_, name=name, net=module_optimizer.module: watch.found.update(grads(name, net))
        )
    trainer.train()
    return watch.found


def greatest_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert max(float(each.abs().max()) for each in expected.values()) > 1e-3
    return max(float((found[name] - each).abs().max()) for name, each in expected.items())
