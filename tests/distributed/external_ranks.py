"""What each of two gloo processes runs with models of transformers; started by ``test_external_networks.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
from external_teacher import save_teacher, text
from ragged_batch import LENGTH, MASK, VOCAB, config_of, gradients_of_the_loop, greatest_gap, in_double
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM, EsmConfig, EsmForMaskedLM, LlamaConfig, LlamaForCausalLM

from discrete_distill import DiDiInstructConfig, SharedBase, as_denoiser, make_networks
from discrete_distill.distributed.collectives import leave_processes
from discrete_distill.distributed.parallel import can_shard
from discrete_distill.recipes.owt import main as owt
from discrete_distill.training import gather_in_order

torch.set_num_threads(1)
RECIPE = [
    "--precision=fp32", "--data.length=8", "--distill.loop.num-steps=3", "--distill.loop.checkpoint-every=2",
    "--distill.batch-size=4", "--distill.method.advantages.group-size=2", "--distill.method.log-ratio.warmup=1",
    "--distill.student.warmup-steps=0", "--distill.discriminator", "--distill.discriminator-blocks=1",
]  # fmt: skip


def model(kind: str) -> nn.Module:
    """Random weights, in double precision. The contact head of ESM has weights that no logit depends on."""
    torch.manual_seed(1)
    size: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 24, "max_position_embeddings": LENGTH + 2, "pad_token_id": 0}
    if kind == "blocks":
        made: nn.Module = LlamaForCausalLM(LlamaConfig(**size))
    elif kind == "bert":
        made = BertForMaskedLM(BertConfig(**size))
    else:
        made = EsmForMaskedLM(EsmConfig(**size, position_embedding_type="rotary", mask_token_id=MASK))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


def networks(config: DiDiInstructConfig, kind: str, ratio: Any, sharing: str) -> dict[str, Any]:
    """Those of `make_networks` by name, moved apart."""
    called = {"attention": "full", "shifted": False, "block_length": 3} if kind == "blocks" else {}
    made = make_networks(
        as_denoiser(model(kind), **called),
        log_ratio=ratio,
        step_conditioning=config.step_conditioning,
        sharing=SharedBase(rank=2) if sharing == "adapters" else "copies",
        trainable_blocks=1,
    )
    for name, each in made.trained().items():
        in_double(each) if name == "discriminator" else each.double()  # type: ignore[arg-type]
        for parameter in each.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    return {name: each for name, each in made.named().items() if each is not None}


def gaps(kind: str, ratio: str, sharing: str, rank: int) -> dict[str, float]:
    """Greatest gap between the gradients of both shares and those of the whole batch, by number of micro-batches."""
    config = config_of(ratio)
    whole = gradients_of_the_loop(config, 1, made=networks(config, kind, ratio, sharing), sharing=sharing)
    found = {}
    for parts in (1, 2):
        made = networks(config, kind, ratio, sharing)
        share = gradients_of_the_loop(config, parts, rank=rank, processes=2, made=made, sharing=sharing)
        found[f"{kind} {sharing} {ratio} {parts}"] = greatest_gap(share, whole)
    if sharing == "copies" and can_shard():
        made = networks(config, kind, ratio, sharing)
        share = gradients_of_the_loop(config, 2, rank=rank, processes=2, made=made, strategy="fsdp")
        found[f"{kind} sharded {ratio}"] = greatest_gap(share, whole)
    return found


def recipe_gap(folder: Path) -> float:
    """Greatest gap between the weights that the recipe's replicated and sharded networks end with, from a BERT in its
    frame, short enough that steps reveal nothing on one rank alone; with the demo's settings."""
    saved = []
    for strategy in ("ddp", "fsdp"):
        flags = [f"--output={folder}/runs", f"--name={strategy}", f"--distill.parallel.strategy={strategy}", *RECIPE]
        teacher = [f"--teacher.path={folder}/bert", f"--data.source={folder}/speech.txt"]
        assert owt(["distill", *flags, *teacher]) == 0
        dist.barrier()
        files = sorted((folder / "runs" / strategy / "student").rglob("*.safetensors"))
        saved.append({(file.name, name): each for file in files for name, each in load_file(file).items()})
    assert saved[0].keys() == saved[1].keys()
    return max(float((saved[0][name] - saved[1][name]).abs().max()) for name in saved[0])


def examples() -> dict[str, list[float]]:
    """The accelerate loop of the examples, on both ranks, with a teacher of transformers."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from examples.accelerate_loop import main as loop

    return {
        sharing: gather_in_order([loop("bert", sharing, steps=12, teacher_steps=5)["student"]])
        for sharing in ("copies", "adapters")
    }


def main() -> None:
    rank = Accelerator(cpu=True).process_index
    found: dict[str, Any] = {"gaps": {}}
    for kind in ("bert", "esm", "blocks"):
        for sharing in ("copies", "adapters"):
            # A discriminator reads whole sequences.
            for ratio in ("auxiliary", "discriminator") if kind != "blocks" else ("auxiliary",):
                found["gaps"] |= gaps(kind, ratio, sharing, rank)
    found["examples"] = examples()
    if can_shard():
        folder = Path(sys.argv[1]).parent
        if rank == 0:
            save_teacher(folder / "bert", "bert")
            text(folder)
        dist.barrier()
        found["recipe"] = recipe_gap(folder)
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.barrier()
    leave_processes()


if __name__ == "__main__":
    main()
