"""The samples of a comparison on disk, and their prices under further judges, for which no network is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ...digests import file_digest
from ...evaluation import Frontier, Judge, generative_perplexity

SAMPLES_FILE = "samples.safetensors"
Samples = dict[tuple[float, int], Tensor]
"""Sequences int64 ``[N, L]`` of one line, by temperature and seed."""


def nats_of_text(heldout: Tensor, judge: Judge) -> float:
    """Nats a token of held-out text, int64 ``[M, L]``."""
    return generative_perplexity(heldout, judge, precision="text").nats_per_token


def price(results: dict[str, Any], samples: list[Samples], judge: Judge, heldout: Tensor, mask_token_id: int) -> None:
    """Add a judge to results, unless it is there.

    Args:
        results: of a comparison; changed in their place.
        samples: of each line.
        judge: who prices them.
        heldout: text, int64 ``[M, L]``.
        mask_token_id: samples that hold it are refused.
    """
    if judge.name in results["judges"]:
        return
    results["data"]["nats_per_token"][judge.name] = nats_of_text(heldout, judge)
    for line, of_line in tqdm(list(zip(results["lines"], samples, strict=True)), desc=judge.name):
        frontier = Frontier.from_dict(line["frontiers"][0])

        def sample(temperature: float, seed: int, of_line: Samples = of_line) -> Tensor:
            return of_line[temperature, seed]

        line["frontiers"].append(frontier.priced_by(judge, sample, mask_token_id=mask_token_id).to_dict())
    results["judges"].append(judge.name)


def write_samples(folder: Path, samples: list[Samples]) -> str:
    """Write the samples of all lines; return the digest of the file."""
    file = folder / SAMPLES_FILE
    tensors = {
        f"{index} {temperature!r} {seed}": sequences.to("cpu", torch.int32).contiguous()
        for index, of_line in enumerate(samples)
        for (temperature, seed), sequences in of_line.items()
    }
    save_file(tensors, file)
    return file_digest(file)


def read_samples(folder: Path, results: dict[str, Any]) -> list[Samples]:
    """Read the samples that results were measured on.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they are of another evaluation.
    """
    file = folder / SAMPLES_FILE
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; run the evaluate stage first, or name another --name")
    if file_digest(file) != results["samples"]:
        raise ValueError(f"{file} holds the samples of another evaluation; run the evaluate stage again")
    found: list[Samples] = [{} for _ in results["lines"]]
    for name, sequences in load_file(file).items():
        index, temperature, seed = name.split()
        found[int(index)][float(temperature), int(seed)] = sequences.long()
    return found
