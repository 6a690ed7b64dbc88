"""The method in Lightning, by manual optimisation. Needs ``pip install lightning``; ``python -m
examples.lightning_module``"""

from __future__ import annotations

import lightning
import torch
from torch import nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig
from discrete_distill.training import CollapseWatch, step_generator
from examples.toy import CHAIN, LENGTH, PROCESS, report, train_teacher


class Distillation(lightning.LightningModule):
    """Student and auxiliary with an optimiser each; Lightning's are not stepped for two networks by itself."""

    def __init__(self, teacher: nn.Module, config: DiDiInstructConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.watch = CollapseWatch(every=10)
        self.student = DiDiInstruct.make_student(teacher, config)
        self.auxiliary = DiDiInstruct.make_auxiliary(teacher, config)
        self.method = DiDiInstruct(self.student, teacher, None, PROCESS, config, auxiliary=self.auxiliary)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        networks, rates = (self.student, self.auxiliary), (1e-3, 2e-3)
        return [torch.optim.AdamW(network.parameters(), lr=lr) for network, lr in zip(networks, rates, strict=True)]

    def training_step(self, batch: torch.Tensor, index: int) -> None:
        g = step_generator(0, index, rank=self.global_rank, device=self.device)
        student_optimizer, ratio_optimizer = self.optimizers()
        rollout = self.method.rollout(64, LENGTH, generator=g, device=self.device)
        if index >= self.method.config.ratio_warmup:
            reference = CHAIN.sample(64, LENGTH, generator=g)
            out = self.method.student_loss(rollout, reference=reference, generator=g)
            self.manual_backward(out.loss)
            self.clip_gradients(student_optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            student_optimizer.step()
            student_optimizer.zero_grad()
            self.log_dict(out.metrics)
            sign = self.watch.add(index, out.metrics)  # raises TrainingCollapsed if samples stay alike
            if sign is not None and sign.is_new:
                print(sign)
        for _ in range(self.method.config.ratio_updates):
            self.manual_backward(self.method.auxiliary_loss(rollout, generator=g).loss)
            ratio_optimizer.step()
            ratio_optimizer.zero_grad()


def main(steps: int = 120, teacher_steps: int = 400) -> dict[str, float]:
    """Distil the toy teacher under Lightning's Trainer."""
    teacher = train_teacher(teacher_steps)
    module = Distillation(teacher, DiDiInstructConfig.recommended(group_size=16, path_steps=(2,)))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_steps=-1, max_epochs=1, accelerator="auto", devices=1, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(steps), batch_size=1))
    print(f"entropy of the student's predictions: {float(trainer.callback_metrics['entropy']):.3f} nats")
    return report(teacher, module.student.eval().cpu())


if __name__ == "__main__":
    main()
