"""What each of two gloo processes runs; rank 0 prints what it found as JSON. Started by ``test_two_ranks.py``."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ragged_batch import config_of, gradients_of_the_loop, gradients_of_the_trainer, greatest_gap
from recipe_flags import FLAGS
from torch import Generator, Tensor, nn
from whole_batch import ACCELERATOR, BATCH, LENGTH, RANK, VOCAB, network, same_as_one_process

from discrete_distill import AncestralSampler, DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, group_advantages
from discrete_distill.distillation.methods import Regularization
from discrete_distill.distributed.collectives import leave_processes
from discrete_distill.distributed.parallel import can_shard, gathered
from discrete_distill.evaluation import CausalLMJudge
from discrete_distill.models import Discriminator, DiT, DiTConfig
from discrete_distill.recipes.common.sharded import SharedJudge, draw_in_shares
from discrete_distill.training import (
    LoopConfig,
    ModuleOptimizer,
    OptimizerConfig,
    ParallelConfig,
    TrainingLoop,
    gather_in_order,
    my_share,
    read_metrics,
    shard,
    step_generator,
)

STRATEGIES = ("ddp", "fsdp") if can_shard() else ("ddp",)

torch.set_num_threads(1)


def advantages() -> dict[str, float]:
    """Batch statistics are those of all ranks; groups are their own rank's."""
    rewards = torch.randn(12, generator=Generator().manual_seed(4), dtype=torch.float64)
    mine = group_advantages(rewards.chunk(2)[RANK], 3, baseline="batch", scale="batch")
    centred = rewards - rewards.mean()
    expected = centred / (centred.square().mean().sqrt() + 1e-4)
    grouped = group_advantages(rewards.chunk(2)[RANK], 3)
    by_hand = rewards.view(4, 3) - rewards.view(4, 3).mean(1, keepdim=True)
    by_hand = (by_hand / (by_hand.square().mean(1, keepdim=True).sqrt() + 1e-4)).flatten()
    return {
        "batch": float((mine - expected.chunk(2)[RANK]).abs().max()),
        "group": float((grouped - by_hand.chunk(2)[RANK]).abs().max()),
    }


class Poisoned(Exception):
    """Stands for a process that dies."""


def train(
    directory: Path, strategy: str, *, die_at: int | None = None, bad: int | None = None, **more: Any
) -> ModuleOptimizer:
    """Six updates in two micro-batches each; on rank 1 the loss of step ``bad`` is not a number."""
    made = network(dropout=0.1).float()
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=2, ema_decay=0.5)
    module_optimizer = ModuleOptimizer(made, config, 6, ACCELERATOR, ParallelConfig(strategy=strategy, **more))
    process = MaskedDiffusion(VOCAB - 1)

    def step(index: int, generator: Generator) -> dict[str, float]:
        if index == die_at:
            raise Poisoned
        for part in range(2):
            x = torch.randint(VOCAB - 1, (BATCH, LENGTH), generator=generator)
            if part == 0:
                with module_optimizer.accumulating():
                    module_optimizer.backward(
                        process.nelbo(module_optimizer.network, x, by="count", generator=generator).loss / 2
                    )
        loss = process.nelbo(module_optimizer.network, x, by="count", generator=generator).loss / 2
        metrics = module_optimizer.step(loss * (float("nan") if index == bad and RANK == 1 else 1.0))
        return {"rank": float(RANK), **metrics}

    loop = LoopConfig(num_steps=6, seed=5, log_every=3, checkpoint_every=2)
    TrainingLoop(loop, directory, {"network": module_optimizer}, step, label="t", rank=RANK, quiet=True).run()
    return module_optimizer


def weights(module_optimizer: ModuleOptimizer) -> Tensor:
    states = (gathered(module_optimizer.module.state_dict()), gathered(module_optimizer.averaged.state_dict()))
    return torch.cat([value.flatten() for state in states for value in state.values()])


def loops(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    straight = {name: weights(train(folder / name, name)) for name in STRATEGIES}
    pairs = [("ddp", "ddp")]
    if can_shard():
        found["ddp_against_fsdp"] = float((straight["ddp"] - straight["fsdp"]).abs().max())
        pairs += [("fsdp", "fsdp"), ("fsdp", "ddp")]
    for first, then in pairs:
        cut = folder / f"{first}-{then}"
        try:
            train(cut, first, die_at=3)
        except Poisoned:
            dist.barrier()
        gap = (weights(train(cut, then)) - straight[then]).abs().max()
        found[f"resumed_{first}_{then}"] = float(gap)
    found["rank_in_log"] = [line["rank"] for line in read_metrics(folder / "ddp")]
    with_memory = {"activation_checkpointing": True, "compile_backend": "aot_eager"}
    found["memory_options"] = float(
        (weights(train(folder / "memory", STRATEGIES[-1], **with_memory)) - straight[STRATEGIES[-1]]).abs().max()
    )
    skipping = train(folder / "bad", "ddp", bad=4)
    found["skipped"] = [int(n) for n in gather_in_order([skipping.skipped])]
    found["finite"] = bool(weights(skipping).isfinite().all())
    both = [torch.zeros_like(weights(skipping)) for _ in range(2)]
    dist.all_gather(both, weights(skipping))
    found["ranks_alike"] = bool(torch.equal(*both))
    return found


def stop(folder: Path) -> dict[str, Any]:
    """Rank 1 alone is told to stop in step 2; both leave after it."""
    import os
    import signal

    module_optimizer = ModuleOptimizer(nn.Linear(2, 1), OptimizerConfig(), 9, ACCELERATOR)

    def step(index: int, generator: Generator) -> dict[str, float]:
        if index == 2 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return module_optimizer.step(module_optimizer.network(torch.ones(1, 2)).sum())

    loop = TrainingLoop(
        LoopConfig(num_steps=9), folder, {"net": module_optimizer}, step, label="stop", rank=RANK, quiet=True
    )
    message = ""
    try:
        loop.run()
    except KeyboardInterrupt as interruption:
        message = str(interruption)
    latest = loop.store.load_latest()
    return {"messages": gather_in_order([message]), "saved": -1 if latest is None else latest[0]}


def sharding() -> dict[str, Any]:
    denoiser = network().float()
    sampler = AncestralSampler(MaskedDiffusion(VOCAB - 1), num_steps=4)

    def draw(start: int) -> Any:
        return sampler(denoiser, (3, LENGTH), generator=Generator().manual_seed(start))

    starts = [0, 3, 6, 9, 12]
    shared = torch.cat([out.sequences for out in draw_in_shares(starts, draw)])
    alone = torch.cat([draw(start).sequences for start in starts])

    class Bigram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(VOCAB, VOCAB)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids)

    torch.manual_seed(6)
    judge = CausalLMJudge(Bigram(), name="bigram", eos_token_id=0, context=LENGTH)
    one, two = judge.token_nats(alone), SharedJudge(judge).token_nats(alone)
    return {
        "order": gather_in_order(my_share(list(range(5)))),
        "empty_share": gather_in_order(my_share(["only"])),
        "same_samples": bool(torch.equal(shared, alone)),
        "same_counts": bool(torch.equal(one.loss_mask, two.loss_mask)),
        "price_gap": float((one.nats - two.nats).abs().max()),
        "ranks_draw_differently": len(set(gather_in_order([int(step_generator(0, 0, rank=RANK).initial_seed())]))) == 2,
    }


def recipe(folder: Path) -> dict[str, Any]:
    """The whole recipe, sharded where PyTorch can, in micro-batches."""
    from discrete_distill.recipes.owt import main as command_line

    text = folder / "text.txt"
    if RANK == 0:
        words = ["the state", "of the union", "is", "strong", "and", "our", "people", "are", "free", "tonight"]
        text.write_text("\n".join(" ".join(words[(i * j) % 10] for j in range(1, 60)) for i in range(1, 61)))
        config = DiTConfig(vocab_size=2048, max_length=16, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)
        DiT(config).save_pretrained(folder / "teacher")
    dist.barrier()
    paths = [f"--output={folder}", f"--data.source={text}", f"--teacher.path={folder}/teacher"]
    flags = [*paths, "--name=run", f"--distill.parallel.strategy={STRATEGIES[-1]}", *FLAGS]
    return {"codes": gather_in_order([command_line(flags)])}


def half_precision() -> dict[str, float]:
    """Cosine of the gradients of sharded bf16 networks and of plain ones under the same autocast; all ranks see one
    batch."""
    torch.manual_seed(2)
    plain = {"denoiser": network().float(), "discriminator": Discriminator.from_denoiser(network().float(), 1)}
    x_t, t = torch.randint(VOCAB, (BATCH, LENGTH), generator=Generator().manual_seed(0)), torch.full((BATCH,), 0.3)
    found = {}
    for name, one in plain.items():
        sharded = copy.deepcopy(one)
        shard(sharded, ACCELERATOR.device, "bf16")
        gradients = []
        for each in (one, sharded):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = each(x_t, t)
            out.float().square().mean().backward()
            weights = [w.grad for w in each.parameters() if w.grad is not None]
            assert all(w.dtype == torch.float32 for w in weights)
            gradients.append(torch.cat([gathered(w).flatten() for w in weights]))
        found[name] = float(torch.cosine_similarity(*gradients, dim=0))
    return found


def example() -> dict[str, Any]:
    """The accelerate loop of the examples, on both ranks: they end with one student."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from examples.accelerate_loop import main as loop

    return {"students": gather_in_order([loop(steps=12, teacher_steps=5)["student"]])}


def trainer(folder: Path) -> dict[str, Any]:
    """transformers' Trainer puts the student under its own DDP: one student and one auxiliary on both ranks."""
    from discrete_distill.integrations.transformers import DiDiInstructTrainer, DiDiInstructTrainingArguments

    config = DiDiInstructConfig.recommended(
        advantages={"group_size": 2},
        paths={"num_steps": (2,)},
        log_ratio={"warmup": 0},
        regularization=Regularization(),
    )
    teacher = network(dropout=0.1).float()
    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    made = DiDiInstructTrainer(
        DiDiInstruct.make_student(teacher, config),
        DiDiInstructTrainingArguments(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=BATCH,
            learning_rate=0.01,
            length=LENGTH,
            use_cpu=True,
            ddp_backend="gloo",
            **quiet,
        ),
        teacher=teacher,
        process=MaskedDiffusion(VOCAB - 1),
        config=config,
        auxiliary=DiDiInstruct.make_auxiliary(teacher, config),
    )
    made.train()
    networks = (made.model, made.averaged_student, made.module_optimizers["auxiliary"].module)
    mine = torch.cat([nn.utils.parameters_to_vector(each.parameters()).detach() for each in networks])
    both = [torch.zeros_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    kinds = [type(each).__name__ for each in (made.model_wrapped, made.method.auxiliary)]
    return {"alike": bool(torch.equal(*both)), "kinds": kinds}


def ragged(folder: Path) -> dict[str, float]:
    """Greatest gaps between the gradients of both shares, in micro-batches, and those of the whole batch."""
    found = {}
    for ratio in ("auxiliary", "discriminator"):
        config = config_of(ratio)
        whole = gradients_of_the_loop(config, 1)
        for parts in (1, 2):
            share = gradients_of_the_loop(config, parts, rank=RANK, processes=2)
            found[f"loop {ratio} {parts}"] = greatest_gap(share, whole)
            share = gradients_of_the_trainer(config, parts, folder, rank=RANK, processes=2)
            found[f"trainer {ratio} {parts}"] = greatest_gap(share, whole)
    return found


def main() -> None:
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    folder = Path(sys.argv[1])
    found = {
        "processes": ACCELERATOR.num_processes,
        "one": {
            f"{strategy} {ratio}": same_as_one_process(strategy, ratio)
            for strategy in STRATEGIES
            for ratio in ("discriminator", "auxiliary")
        },
        "advantages": advantages(),
        "loops": loops(folder),
        "stop": stop(folder / "stop"),
        "sharding": sharding(),
        "recipe": recipe(folder),
        "example": example(),
        "half": half_precision() if can_shard() else {},
        "trainer": trainer(folder / "trainer"),
        "ragged": ragged(folder / "ragged"),
    }
    if RANK == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    leave_processes()


if __name__ == "__main__":
    main()
