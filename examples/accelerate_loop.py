"""The method under accelerate: one process or many. ``torchrun --nproc-per-node 2 -m examples.accelerate_loop``

``replicate`` puts a network under DDP and leaves it what a denoiser needs (``features``, ``accepts_step``), which a
bare
``accelerator.prepare`` would hide.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator

from discrete_distill import DiDiInstruct, DiDiInstructConfig
from discrete_distill.training import CollapseWatch, replicate, step_generator
from examples.toy import CHAIN, LENGTH, PROCESS, report, train_teacher


def main(steps: int = 120, teacher_steps: int = 400, accumulate: int = 2) -> dict[str, float]:
    """Distil the toy teacher; every process draws its own groups, in micro-batches."""
    accelerator = Accelerator(gradient_accumulation_steps=accumulate)
    teacher = train_teacher(teacher_steps).to(accelerator.device)
    config = DiDiInstructConfig.recommended(group_size=16, path_steps=(2,))
    raw = [make(teacher, config) for make in (DiDiInstruct.make_student, DiDiInstruct.make_auxiliary)]
    many = accelerator.num_processes > 1
    student, auxiliary = (replicate(net, accelerator.device) if many else net for net in raw)
    method = DiDiInstruct(student, teacher, None, PROCESS, config, auxiliary=auxiliary)
    rates = (3e-4, 3e-3)  # the auxiliary must keep up with the student: one update each
    optimizers = [
        torch.optim.AdamW(net.parameters(), lr=lr) for net, lr in zip((student, auxiliary), rates, strict=True)
    ]
    student_optimizer, ratio_optimizer = map(accelerator.prepare_optimizer, optimizers)

    watch = CollapseWatch(every=10)
    for micro_batch in range(steps * accumulate):
        # Seed, number and rank: another stream on every process, and none to save.
        g = step_generator(0, micro_batch, rank=accelerator.process_index, device=accelerator.device)
        with accelerator.accumulate(student, auxiliary), accelerator.autocast():
            rollout = method.rollout(64 // accumulate, LENGTH, generator=g)
            warm = micro_batch >= accumulate * config.ratio_warmup
            reference = CHAIN.sample(64 // accumulate, LENGTH, generator=g)
            out = method.student_loss(rollout, reference=reference, generator=g)
            accelerator.backward(float(warm) * out.loss)
            accelerator.backward(method.auxiliary_loss(rollout, generator=g).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(student.parameters(), 1.0)
            for optimizer in (student_optimizer, ratio_optimizer):
                optimizer.step()
                optimizer.zero_grad()
        if warm and accelerator.sync_gradients:
            # All processes look together; it raises TrainingCollapsed if samples stay alike.
            sign = watch.add(micro_batch // accumulate, out.metrics)
            if sign is not None and sign.is_new:
                accelerator.print(sign)
    if accelerator.is_main_process:
        print(f"{accelerator.num_processes} processes, {accumulate} micro-batches of {64 // accumulate} paths each")
    return report(teacher, raw[0].eval())


if __name__ == "__main__":
    main()
