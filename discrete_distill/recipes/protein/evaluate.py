"""The evaluation stage of proteins: teacher, student and guided student beside real proteins and DPLM."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ...evaluation import NGramJudge, generative_perplexity, measure_diversity, measure_proteins
from ..common.corpus import split_documents
from ..common.evaluation import Evaluation, SamplerSpec, between_seeds
from ..common.run import Run
from .dplm import load_dplm, sample_dplm
from .folding import load_esmfold, mean_plddt
from .residues import ResidueTokenizer
from .settings import ProteinConfig

RESULTS: dict[str, type] = {
    "judge": str, "precision": str, "num_samples": int, "seeds": list, "length": int, "lines": list, "seconds": float,
}  # fmt: skip


class ProteinFigures:
    """Figures of sets of windows, all against the same real proteins; a frame around them is left out.

    Args:
        run: of the recipe.
        config: of the recipe.
        residues: the tokenizer.
        judge: of perplexity.
        reference: windows of real proteins, int64 ``[M, L]``.
    """

    def __init__(
        self, run: Run, config: ProteinConfig, residues: ResidueTokenizer, judge: NGramJudge, reference: Tensor
    ) -> None:
        self.residues = residues
        self.judge = judge
        self.minimum_residues = config.minimum_residues
        self.frame = len(residues.prefix), reference.shape[1] - len(residues.suffix)
        self.reference = self.unframed(reference)
        self.real = residues.proteins(self.reference.tolist(), minimum_residues=self.minimum_residues)
        self.training = split_documents(run.documents())["train"][: config.training_sequences]
        self.folding = load_esmfold(config.fold, run.accelerator.device) if config.fold else None

    def unframed(self, windows: Tensor) -> Tensor:
        """Windows without what stands before and behind them."""
        return windows[:, slice(*self.frame)]

    def of_windows(self, sets: list[Tensor]) -> dict[str, Any]:
        """Perplexity, diversity and proteins of windows, in sets of equal size."""
        sets = [self.unframed(each) for each in sets]
        windows = torch.cat(sets)
        whole = [each for each in sets if len(each) == len(sets[0])]
        judged = generative_perplexity(windows, self.judge, mask_token_id=self.residues.mask_token_id)
        diversity = measure_diversity(windows, orders=(1, 2, 3))
        return {
            "perplexity": judged.perplexity,
            "standard_error": judged.standard_error,
            "entropy": diversity.entropy,
            "between_samples": between_seeds(whole, self.reference),
            **self.of_proteins(self.residues.proteins(windows.tolist(), minimum_residues=self.minimum_residues)),
        }

    def of_proteins(self, proteins: Sequence[str]) -> dict[str, Any]:
        """Composition, novelty, clusters, and pLDDT where a structure model is there."""
        if not proteins:
            return {"figures": None, "plddt": None, "shown": []}
        figures = asdict(measure_proteins(proteins, self.real, self.training))
        plddt = None if self.folding is None else mean_plddt(self.folding, proteins)
        return {"figures": figures, "plddt": plddt, "shown": list(proteins[:2])}


def evaluate(run: Run, config: ProteinConfig, residues: ResidueTokenizer, judge: NGramJudge) -> dict[str, Any]:
    """Measure teacher, student, guided student, and DPLM where ``--dplm`` names it.

    Args:
        run: of the recipe.
        config: of the recipe.
        residues: the tokenizer.
        judge: of perplexity.

    Returns:
        What the stage writes.
    """
    started = time.perf_counter()
    chosen, heldout = config.evaluate, run.streams["heldout"].packed(1024)
    evaluation = Evaluation(chosen, run.process, judge, run.accelerator, run.streams["heldout"].shape)
    (student, discriminator), order = run.load_student(), run.student_order
    samplers: list[tuple[SamplerSpec, tuple[int, ...]]] = [
        (evaluation.plain("teacher", run.load_teacher()), chosen.steps),
        (evaluation.plain("student", student, order), chosen.steps),
    ]
    if discriminator is not None:
        samplers.append((evaluation.guided("student + RGAS", student, discriminator, order), chosen.guided_steps))
    # Half of the held-out windows stand for data, the other half is what everything is compared with.
    count = chosen.num_samples * len(chosen.seeds)
    figures = ProteinFigures(run, config, residues, judge, heldout[1::2])
    real = list(heldout[0::2][:count].split(chosen.num_samples))
    lines = [{"method": "real proteins", "steps": None, **figures.of_windows(real)}]
    todo = [(spec, steps) for spec, every in samplers for steps in every]
    quiet = not run.accelerator.is_main_process
    with run.clock.bar(total=sum(steps for _, steps in todo), desc="evaluate", disable=quiet) as bar:
        for spec, steps in todo:
            outputs = [evaluation.sample(spec, steps, 1.0, seed) for seed in chosen.seeds]
            lines.append(
                {
                    "method": spec.name,
                    "steps": steps,
                    "network_evaluations": max(out.network_evaluations for out in outputs),
                    **figures.of_windows([out.sequences for out in outputs]),
                }
            )
            bar.update(steps)
    if config.dplm:
        lines += _dplm_lines(run, config, figures)
    return {
        "judge": judge.name,
        "precision": evaluation.precision,
        "num_samples": chosen.num_samples,
        "seeds": list(chosen.seeds),
        "length": heldout.shape[1],
        "lines": lines,
        "seconds": time.perf_counter() - started,
    }


def _dplm_lines(run: Run, config: ProteinConfig, figures: ProteinFigures) -> list[dict[str, Any]]:
    """DPLM as it is, at the same numbers of steps; it has a vocabulary of its own, so there is no perplexity of the
    n-gram judge."""
    chosen = config.evaluate
    denoiser = load_dplm(config.dplm, run.accelerator.device)
    count = chosen.num_samples * len(chosen.seeds)
    lines = []
    for steps in chosen.steps:
        proteins, cost = sample_dplm(denoiser, count, config.data.length, num_steps=steps, seed=chosen.seeds[0])
        lines.append(
            {
                "method": "DPLM",
                "steps": steps,
                "network_evaluations": cost,
                "perplexity": math.nan,
                "standard_error": None,
                "entropy": math.nan,
                **figures.of_proteins(proteins),
            }
        )
    return lines
