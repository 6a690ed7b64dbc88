"""The method under accelerate: one process or many. ``torchrun --nproc-per-node 2 -m examples.accelerate_loop``

`ModuleOptimizer` holds a network's optimiser and puts the network under DDP; `DistillationStep` obeys the method's plan
of updates, with a batch in micro-batches whose gradient is that of the whole batch. ``--teacher`` and ``--sharing`` as
for ``examples.raw_pytorch``.
"""

from __future__ import annotations

from accelerate import Accelerator
from torch import Generator, Tensor

from discrete_distill import DiDiInstruct, DiDiInstructConfig, Networks, make_networks
from discrete_distill.distillation.rollout import Rollout
from discrete_distill.training import (
    BatchPart,
    CollapseWatch,
    DistillationStep,
    ModuleOptimizer,
    OptimizerConfig,
    step_generator,
)
from examples.toy import CHAIN, LENGTH, PROCESS, arguments, get_teacher, report, sharing_of


def main(
    teacher: str = "dit", sharing: str = "copies", steps: int = 120, teacher_steps: int = 400, accumulate: int = 2
) -> dict[str, float]:
    """Distil the toy teacher; every process draws its own groups, in micro-batches."""
    accelerator = Accelerator()
    made = make_networks(get_teacher(teacher, teacher_steps).to(accelerator.device), sharing=sharing_of(sharing))
    rates, size = {"student": 1e-3, "auxiliary": 2e-3}, 64 // accumulate
    module_optimizers = {
        name: ModuleOptimizer(each, OptimizerConfig(learning_rate=rates[name], warmup_steps=0), steps, accelerator)
        for name, each in made.trained().items()
    }
    networks = Networks(teacher=made.teacher, **{name: each.network for name, each in module_optimizers.items()})
    config = DiDiInstructConfig.recommended(advantages={"group_size": 16}, paths={"num_steps": (2,)})
    method = DiDiInstruct(networks, PROCESS, config)

    def draw(g: Generator, tokens: Tensor | None) -> Rollout:
        return method.rollout(size, LENGTH, generator=g, device=accelerator.device, tokens=tokens)

    watch = CollapseWatch(every=10)
    for index in range(steps):
        parts = []
        for number in range(index * accumulate, (index + 1) * accumulate):
            # Seed, number and rank: another stream on every process, and none to save.
            g = step_generator(0, number, rank=accelerator.process_index, device=accelerator.device)
            parts.append(
                BatchPart(draw=draw, reference=lambda g=g: CHAIN.sample(size, LENGTH, generator=g), generator=g)
            )
        step = DistillationStep(method, module_optimizers, accelerator, parts, index, num_steps=steps)
        metrics = step.run()
        if step.updates_student:
            # All processes look together; it raises TrainingCollapsed if samples stay alike.
            sign = watch.add(index, metrics)
            if sign is not None and sign.is_new:
                accelerator.print(sign)
    if accelerator.is_main_process:
        print(f"{accelerator.num_processes} processes, {accumulate} micro-batches of {size} paths each")
    return report(made.teacher, made.student.eval())


if __name__ == "__main__":
    main(**arguments())
