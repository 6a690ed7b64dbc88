"""The method in Lightning, by manual optimisation. Needs ``pip install lightning``; ``python -m
examples.lightning_module``

``--teacher`` and ``--sharing`` as for ``examples.raw_pytorch``.
"""

from __future__ import annotations

import lightning
import torch
from torch import nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, Networks, make_networks
from discrete_distill.training import CollapseWatch, step_generator
from examples.toy import CHAIN, LENGTH, PROCESS, arguments, get_teacher, report, sharing_of


class Distillation(lightning.LightningModule):
    """Student and auxiliary with an optimiser each; Lightning's are not stepped for two networks by itself."""

    def __init__(self, networks: Networks, config: DiDiInstructConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.watch = CollapseWatch(every=10)
        self.parameters_by_name = networks.trainable_parameters()
        self.method = DiDiInstruct(networks, PROCESS, config)
        # Lightning moves what is registered to its device, the teacher included.
        self.networks = nn.ModuleDict({name: each for name, each in networks.named().items() if each is not None})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = {"student": 1e-3, "auxiliary": 2e-3}
        return [torch.optim.AdamW(each, lr=rates[name]) for name, each in self.parameters_by_name.items()]

    def training_step(self, batch: torch.Tensor, index: int) -> None:
        g = step_generator(0, index, rank=self.global_rank, device=self.device)
        optimizers = dict(zip(self.parameters_by_name, self.optimizers(), strict=True))
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


def main(teacher: str = "dit", sharing: str = "copies", steps: int = 120, teacher_steps: int = 400) -> dict[str, float]:
    """Distil the toy teacher under Lightning's Trainer."""
    networks = make_networks(get_teacher(teacher, teacher_steps), sharing=sharing_of(sharing))
    config = DiDiInstructConfig.recommended(advantages={"group_size": 16}, paths={"num_steps": (2,)})
    module = Distillation(networks, config)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_steps=-1, max_epochs=1, accelerator="auto", devices=1, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(steps), batch_size=1))
    print(f"entropy of the student's predictions: {float(trainer.callback_metrics['entropy']):.3f} nats")
    module.cpu().eval()
    return report(networks.teacher, networks.student)


if __name__ == "__main__":
    main(**arguments())
