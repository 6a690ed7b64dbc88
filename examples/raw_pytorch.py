"""The method in raw PyTorch: networks, optimisers and loop are yours. ``python -m examples.raw_pytorch``"""

from __future__ import annotations

import torch

from discrete_distill import DiDiInstruct, DiDiInstructConfig
from discrete_distill.training import CollapseWatch
from examples.toy import CHAIN, LENGTH, PROCESS, report, train_teacher


def main(steps: int = 120, teacher_steps: int = 400) -> dict[str, float]:
    """Distil the toy teacher into a student of two steps."""
    teacher = train_teacher(teacher_steps)
    config = DiDiInstructConfig.recommended(group_size=16, path_steps=(2,))
    student = DiDiInstruct.make_student(teacher, config)
    auxiliary = DiDiInstruct.make_auxiliary(teacher, config)
    method = DiDiInstruct(student, teacher, None, PROCESS, config, auxiliary=auxiliary)
    student_optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    ratio_optimizer = torch.optim.AdamW(auxiliary.parameters(), lr=2e-3)

    g, watch = torch.Generator().manual_seed(0), CollapseWatch(every=10)
    for step in range(steps):
        rollout = method.rollout(64, LENGTH, generator=g)
        if step >= config.ratio_warmup:
            out = method.student_loss(rollout, reference=CHAIN.sample(64, LENGTH, generator=g), generator=g)
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            student_optimizer.step()
            student_optimizer.zero_grad()
            sign = watch.add(step, out.metrics)  # raises TrainingCollapsed if samples stay alike
            if sign is not None and sign.is_new:
                print(sign)
        for _ in range(config.ratio_updates):
            method.auxiliary_loss(rollout, generator=g).loss.backward()
            ratio_optimizer.step()
            ratio_optimizer.zero_grad()
        if step % 20 == config.ratio_warmup:
            figures = {name: round(float(value), 3) for name, value in out.metrics.items()}
            print(f"step {step}: {figures}")
    return report(teacher, student.eval())


if __name__ == "__main__":
    main()
