"""The method in raw PyTorch: networks, optimisers and loop are yours. ``python -m examples.raw_pytorch``

With ``--teacher bert`` or ``llama`` the teacher is a tiny model of transformers, or give a folder that `load_denoiser`
reads; with ``--sharing adapters`` all networks are low-rank matrices on one base.
"""

from __future__ import annotations

import torch

from discrete_distill import DiDiInstruct, DiDiInstructConfig, make_networks
from discrete_distill.training import CollapseWatch
from examples.toy import CHAIN, LENGTH, PROCESS, arguments, get_teacher, report, sharing_of


def main(teacher: str = "dit", sharing: str = "copies", steps: int = 120, teacher_steps: int = 400) -> dict[str, float]:
    """Distil the toy teacher into a student of two steps."""
    networks = make_networks(get_teacher(teacher, teacher_steps), sharing=sharing_of(sharing))
    config = DiDiInstructConfig.recommended(advantages={"group_size": 16}, paths={"num_steps": (2,)})
    method = DiDiInstruct(networks, PROCESS, config)
    parameters, rates = networks.trainable_parameters(), {"student": 1e-3, "auxiliary": 2e-3}
    optimizers = {name: torch.optim.AdamW(each, lr=rates[name]) for name, each in parameters.items()}

    g, watch = torch.Generator().manual_seed(0), CollapseWatch(every=10)
    for step in range(steps):
        rollout = method.rollout(64, LENGTH, generator=g)
        reference = CHAIN.sample(64, LENGTH, generator=g)
        for name in method.update_plan.networks(step):
            out = method.loss(name, rollout, reference=reference, generator=g)
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters[name], 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()
            if name == "student":
                sign = watch.add(step, out.metrics)  # raises TrainingCollapsed if samples stay alike
                if sign is not None and sign.is_new:
                    print(sign)
                if step % 20 == method.update_plan.warmup:
                    figures = {key: round(float(value), 3) for key, value in out.metrics.items()}
                    print(f"step {step}: {figures}")
    return report(networks.teacher, networks.student)


if __name__ == "__main__":
    main(**arguments())
