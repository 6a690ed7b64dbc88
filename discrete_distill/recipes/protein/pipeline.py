"""The stages of the protein recipe: those of the text recipe, with letters for words and figures of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from ...evaluation import Judge, NGramJudge, generative_perplexity, measure_diversity, measure_proteins
from ...models import DiT
from ...training import flat_settings, read_metrics
from ..common.assets import BUNDLED, asset
from ..common.environment import describe_machine, make_folder
from ..common.results import read_results, write_results
from ..text.corpus import TokenStream, load_streams, read_documents, split_documents
from ..text.evaluate import RESULTS_FILE, Contestant, Evaluation, between_seeds
from ..text.pipeline import Pipeline
from ..text.tokenizer import TextTokenizer
from .dplm import load_dplm, sample_dplm
from .fasta import ResidueTokenizer
from .folding import load_esmfold, mean_plddt
from .report import protein_table, write_protein_report
from .settings import ProteinConfig

RESULTS: dict[str, type] = {
    "judge": str, "precision": str, "num_samples": int, "seeds": list, "length": int, "lines": list, "seconds": float,
}  # fmt: skip


class ProteinPipeline(Pipeline):
    """One run.

    Args:
        config: every setting.
        command: the command line, for the report.
    """

    config: ProteinConfig

    def __init__(self, config: ProteinConfig, command: str) -> None:
        super().__init__(config, command)
        self.residues = ResidueTokenizer()

    @property
    def tokenizer(self) -> TextTokenizer:
        """One token a residue."""
        return self.residues

    @property
    def source(self) -> str:
        """The FASTA file."""
        name = self.config.data.source
        return str(asset("protein/proteins.fasta.xz")) if name == BUNDLED else name

    @property
    def streams(self) -> dict[str, TokenStream]:
        """Sequences of each split, joined by ends."""
        if self._streams is None:
            data = self.config.data
            cache = Path(data.cache) if data.cache else self.config.output / "tokens"
            self._streams = load_streams(self.source, self.residues, data.length, cache)
        return self._streams

    def _read_text(self) -> list[str]:
        return read_documents(self.source)

    def load_teacher(self) -> DiT:
        """The shipped protein teacher, or another, checked against alphabet and length."""
        if self.config.teacher.path != BUNDLED:
            return super().load_teacher()
        config, shipped = self.config, str(asset("protein/teacher"))
        self.config = replace(config, teacher=replace(config.teacher, path=shipped))
        try:
            return super().load_teacher()
        finally:
            self.config = config

    def _check_judge(self) -> None:
        """Nothing to look for: the judge is counted from a split of the text."""

    def load_judge(self) -> Judge:
        """n-grams of sequences that neither teacher nor student saw."""
        ids = torch.from_numpy(self.streams["judge"].ids[:].astype("int64"))[None]
        return NGramJudge(
            ids,
            vocab_size=self.residues.vocab_size,
            order=self.config.ngram,
            excluded=(self.residues.mask_token_id,),
        )

    def evaluate(self) -> None:
        """Measure teacher, student and guided student; figures go to ``evaluation.json``."""
        started = time.perf_counter()
        config, judge = self.config.evaluate, self.load_judge()
        heldout = self.streams["heldout"].packed(1024)
        run = Evaluation(config, self.process, judge, self.accelerator, heldout.shape[1])
        student, discriminator = self.load_student()
        contestants: list[tuple[Contestant, tuple[int, ...]]] = [
            (run.plain("teacher", self.load_teacher()), config.steps),
            (run.plain("student", student), config.steps),
        ]
        if discriminator is not None:
            contestants.append((run.guided("student + RGAS", student, discriminator), config.guided_steps))
        splits = split_documents(read_documents(self.source))
        self.training = splits["train"][: self.config.training_sequences]
        # Half of the held-out windows stand for data, the other half is what everything is compared with.
        count = config.num_samples * len(config.seeds)
        self.reference = self.residues.proteins(heldout[1::2].tolist(), least=self.config.least_residues)
        self.folding = load_esmfold(self.config.fold, self.accelerator.device) if self.config.fold else None
        self.other_windows = heldout[1::2]
        real = list(heldout[0::2][:count].split(config.num_samples))
        lines = [{"method": "real proteins", "steps": None, **self._figures(real, judge)}]
        for contestant, every in contestants:
            for steps in every:
                outputs = [run.sample(contestant, steps, 1.0, seed) for seed in config.seeds]
                windows = [out.sequences for out in outputs]
                cost = max(out.network_evaluations for out in outputs)
                lines.append(
                    {
                        "method": contestant.name,
                        "steps": steps,
                        "network_evaluations": cost,
                        **self._figures(windows, judge),
                    }
                )
        lines += self._dplm_lines()
        results = {
            "judge": judge.name,
            "precision": run.precision,
            "num_samples": config.num_samples,
            "seeds": list(config.seeds),
            "length": run.length,
            "lines": lines,
            "seconds": time.perf_counter() - started,
        }
        write_results(make_folder(self.directory) / RESULTS_FILE, results)

    def _figures(self, sets: list[torch.Tensor], judge: Judge) -> dict[str, Any]:
        """Of windows, in sets of equal size."""
        windows = torch.cat(sets)
        whole = [each for each in sets if len(each) == len(sets[0])]
        log_ratio_output = generative_perplexity(windows, judge, mask_token_id=self.residues.mask_token_id)
        diversity = measure_diversity(windows, orders=(1, 2, 3))
        return {
            "perplexity": log_ratio_output.perplexity,
            "standard_error": log_ratio_output.standard_error,
            "entropy": diversity.entropy,
            "between_samples": between_seeds(whole, self.other_windows),
            **self._protein_figures(self.residues.proteins(windows.tolist(), least=self.config.least_residues)),
        }

    def _protein_figures(self, proteins: Sequence[str]) -> dict[str, Any]:
        if not proteins:
            return {"figures": None, "plddt": None, "shown": []}
        figures = asdict(measure_proteins(proteins, self.reference, self.training))
        plddt = None if self.folding is None else mean_plddt(self.folding, proteins)
        return {"figures": figures, "plddt": plddt, "shown": list(proteins[:2])}

    def _dplm_lines(self) -> list[dict[str, Any]]:
        """DPLM as it is, at the same numbers of steps; it has a vocabulary of its own, so the n-gram judge is not
        asked."""
        if not self.config.dplm:
            return []
        config = self.config.evaluate
        denoiser = load_dplm(self.config.dplm, self.accelerator.device)
        count = config.num_samples * len(config.seeds)
        lines = []
        for steps in config.steps:
            proteins, cost = sample_dplm(
                denoiser, count, self.config.data.length, num_steps=steps, seed=config.seeds[0]
            )
            lines.append(
                {
                    "method": "DPLM",
                    "steps": steps,
                    "network_evaluations": cost,
                    "perplexity": math.nan,
                    "standard_error": None,
                    "entropy": math.nan,
                    **self._protein_figures(proteins),
                }
            )
        return lines

    def _read_results(self) -> dict[str, Any]:
        return read_results(self.directory / RESULTS_FILE, RESULTS)

    def report(self) -> None:
        """Write ``report.md``, and print the table."""
        results = self._read_results()
        path = write_protein_report(
            results,
            read_metrics(self.directory),
            self.directory,
            command=self.command,
            machine=describe_machine(self.accelerator),
            settings=flat_settings(self.config),
        )
        Console().print(Markdown(protein_table(results)))
        print(path)
