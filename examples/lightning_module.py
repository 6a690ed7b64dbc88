"""The method in Lightning, by manual optimisation. Needs ``pip install lightning``; ``python -m
examples.lightning_module``"""

from __future__ import annotations

import lightning
import torch
from torch import nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, Networks
from discrete_distill.training import CollapseWatch, step_generator
from examples.toy import CHAIN, LENGTH, PROCESS, report, train_teacher


class Distillation(lightning.LightningModule):
    """Student and auxiliary with an optimiser each; Lightning's are not stepped for two networks by itself."""

    def __init__(self, teacher: nn.Module, config: DiDiInstructConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.watch = CollapseWatch(every=10)
        student = DiDiInstruct.make_student(teacher, config)
        auxiliary = DiDiInstruct.make_auxiliary(teacher, config)
        self.networks = nn.ModuleDict({"student": student, "auxiliary": auxiliary})
        self.method = DiDiInstruct(Networks(student, teacher, auxiliary=auxiliary), PROCESS, config)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = {"student": 1e-3, "auxiliary": 2e-3}
        return [torch.optim.AdamW(network.parameters(), lr=rates[name]) for name, network in self.networks.items()]

    def training_step(self, batch: torch.Tensor, index: int) -> None:
        g = step_generator(0, index, rank=self.global_rank, device=self.device)
        optimizers = dict(zip(self.networks, self.optimizers(), strict=True))
        rollout = self.method.rollout(64, LENGTH, generator=g, device=self.device)
        reference = CHAIN.sample(64, LENGTH, generator=g)
        for name in self.method.update_plan.networks(index):
            out = self.method.loss(name, rollout, reference=reference, generator=g)
            self.manual_backward(out.loss)
            self.clip_gradients(optimizers[name], gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizers[name].step()
            optimizers[name].zero_grad()
            if name == "student":
                self.log_dict(out.metrics)
                sign = self.watch.add(index, out.metrics)  # raises TrainingCollapsed if samples stay alike
                if sign is not None and sign.is_new:
                    print(sign)


def main(steps: int = 120, teacher_steps: int = 400) -> dict[str, float]:
    """Distil the toy teacher under Lightning's Trainer."""
    teacher = train_teacher(teacher_steps)
    module = Distillation(
        teacher, DiDiInstructConfig.recommended(advantages={"group_size": 16}, paths={"num_steps": (2,)})
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_steps=-1, max_epochs=1, accelerator="auto", devices=1, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(steps), batch_size=1))
    print(f"entropy of the student's predictions: {float(trainer.callback_metrics['entropy']):.3f} nats")
    return report(teacher, module.networks["student"].eval().cpu())


if __name__ == "__main__":
    main()
