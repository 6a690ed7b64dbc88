"""Quality of protein sequences without a structure model: composition, complexity, novelty, clusters.

Sequences are strings over the 20 amino acids. Figures of a set depend on its size: compare them with those of real
proteins of equal number and length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
LOW_COMPLEXITY_WINDOW, LOW_COMPLEXITY_BITS = 12, 2.2
UNIT = 1 << 24  # A score of 1 in the alignment; matches are counted in the digits below.


@dataclass(frozen=True, kw_only=True)
class ProteinFigures:
    """Figures of a set of proteins, compared with references.

    Attributes:
        count: sequences.
        residues: in all.
        amino_acid_divergence: Jensen-Shannon divergence of residue frequencies from the reference's, nats.
        dipeptide_divergence: likewise of pairs of neighbours.
        low_complexity: fraction of residues in a window of 12 of entropy at most 2.2 bits (SEG's threshold).
        identity: mean over sequences of the identity to the nearest training sequence, `local_identity`.
        maximum_identity: the maximum of them; 1 is a copy.
        clusters: clusters at identity 0.5, over sequences: 1 where no two are alike.

    Examples:
        >>> copies = ["MKTAYIAKQRQISFVKSHFSRQ"]
        >>> figures = measure_proteins(copies, reference=copies, training=copies)
        >>> figures.maximum_identity, figures.amino_acid_divergence
        (1.0, 0.0)
    """

    count: int
    residues: int
    amino_acid_divergence: float
    dipeptide_divergence: float
    low_complexity: float
    identity: float
    maximum_identity: float
    clusters: float


def measure_proteins(
    sequences: Sequence[str], reference: Sequence[str], training: Sequence[str], *, candidates: int = 20
) -> ProteinFigures:
    """Measure all figures of a set of proteins.

    Args:
        sequences: to be judged.
        reference: real proteins whose composition is the standard.
        training: what the model has seen, for novelty.
        candidates: training sequences that are aligned with each sequence, those with most 3-mers in common.

    Raises:
        ValueError: if there are no sequences, fewer than one candidate, or one holds something that is no amino acid.

    Examples:
        >>> figures = measure_proteins(["AAAAAAAAAAAA"], reference=["MKTAYIAKQRQI"], training=["MKTAYIAKQRQI"])
        >>> figures.low_complexity, figures.clusters
        (1.0, 1.0)
    """
    if candidates < 1:
        raise ValueError(f"candidates must be 1 or more, got {candidates}")
    for name, given in (("sequences", sequences), ("reference", reference), ("training", training)):
        _check(given, name)
    identities = nearest_identity(sequences, training, candidates=candidates)
    return ProteinFigures(
        count=len(sequences),
        residues=sum(map(len, sequences)),
        amino_acid_divergence=composition_divergence(sequences, reference, 1),
        dipeptide_divergence=composition_divergence(sequences, reference, 2),
        low_complexity=low_complexity_fraction(sequences),
        identity=sum(identities) / len(identities),
        maximum_identity=max(identities),
        clusters=count_clusters(sequences) / len(sequences),
    )


def composition_divergence(first: Sequence[str], second: Sequence[str], n: int) -> float:
    """Jensen-Shannon divergence of n-gram frequencies, nats, in ``[0, log 2]``; biased upwards by small sets."""
    counts = [Counter(s[i : i + n] for s in each for i in range(len(s) - n + 1)) for each in (first, second)]
    totals = [sum(each.values()) for each in counts]
    if not all(totals):
        raise ValueError(f"no sequence is {n} residues long")
    divergence = 0.0
    for gram in counts[0].keys() | counts[1].keys():
        p, q = (each[gram] / total for each, total in zip(counts, totals, strict=True))
        m = 0.5 * (p + q)
        divergence += 0.5 * sum(x * math.log(x / m) for x in (p, q) if x > 0.0)
    return divergence


def low_complexity_fraction(
    sequences: Sequence[str], *, window: int = LOW_COMPLEXITY_WINDOW, bits: float = LOW_COMPLEXITY_BITS
) -> float:
    """Fraction of residues that lie in a window whose composition has an entropy of at most ``bits``."""
    low = total = 0
    for sequence in sequences:
        marked = [False] * len(sequence)
        for start in range(len(sequence) - window + 1):
            counts = Counter(sequence[start : start + window]).values()
            if -sum(c / window * math.log2(c / window) for c in counts) <= bits + 1e-9:
                marked[start : start + window] = [True] * window
        low, total = low + sum(marked), total + len(sequence)
    return low / max(total, 1)


def nearest_identity(sequences: Sequence[str], training: Sequence[str], *, candidates: int = 20) -> list[float]:
    """`local_identity` to the nearest of the ``candidates`` training sequences with most 3-mers in common."""
    table: dict[str, list[int]] = {}
    for index, sequence in enumerate(training):
        for gram in {sequence[i : i + 3] for i in range(len(sequence) - 2)}:
            table.setdefault(gram, []).append(index)
    pairs, owners = [], []
    for owner, sequence in enumerate(sequences):
        shared: Counter[int] = Counter()
        # In order: which of equally good candidates is kept must not depend on the hashes of strings.
        for gram in sorted({sequence[i : i + 3] for i in range(len(sequence) - 2)}):
            shared.update(table.get(gram, ()))
        for index, _ in shared.most_common(candidates):
            pairs.append((sequence, training[index]))
            owners.append(owner)
    best = [0.0] * len(sequences)
    for owner, identity in zip(owners, local_identity(pairs), strict=True):
        best[owner] = max(best[owner], identity)
    return best


def count_clusters(sequences: Sequence[str], *, threshold: float = 0.5) -> int:
    """Count greedy clusters, longest first (CD-HIT's scheme, Bioinformatics 22, 2006).

    A sequence joins the first cluster whose representative it resembles with an identity of ``threshold`` or more."""
    representatives: list[str] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        if not any(each >= threshold for each in local_identity([(sequence, other) for other in representatives])):
            representatives.append(sequence)
    return len(representatives)


def local_identity(pairs: Sequence[tuple[str, str]], *, batch_size: int = 512) -> list[float]:
    """Matches in the best local alignment, over the length of the first sequence of each pair.

    Smith-Waterman (1981) with match 1, mismatch -1, gap -2 a residue; of alignments of one score, that with most
    matches. Random sequences have a few percent.
    """
    found: list[float] = []
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        found += (_matches(*(_encode([pair[side] for pair in chunk], -1 - side) for side in (0, 1)))).tolist()
    return [matches / max(len(pair[0]), 1) for matches, pair in zip(found, pairs, strict=True)]


def _matches(first_PL: Tensor, second_PM: Tensor) -> Tensor:
    """Score and matches travel in one number, ``score * UNIT + matches``, so that one maximum keeps both."""
    width = second_PM.shape[1]
    gap_M = 2 * UNIT * torch.arange(width)
    row_PM = torch.zeros(second_PM.shape, dtype=torch.long)
    best_P = torch.zeros(len(second_PM), dtype=torch.long)
    for i in range(first_PL.shape[1]):
        pair_PM = torch.where(first_PL[:, i : i + 1] == second_PM, UNIT + 1, -UNIT)
        diagonal_PM = torch.nn.functional.pad(row_PM[:, :-1], (1, 0)) + pair_PM
        open_PM = torch.maximum(diagonal_PM, row_PM - 2 * UNIT).clamp(min=0)
        # Gaps along the row: the maximum to the left, less two for each residue that is skipped.
        row_PM = ((open_PM + gap_M).cummax(1).values - gap_M).clamp(min=0)
        best_P = torch.maximum(best_P, row_PM.max(1).values)
    return best_P % UNIT


def _encode(sequences: Sequence[str], padding: int) -> Tensor:
    length = max(1, *map(len, sequences)) if sequences else 1
    rows = torch.full((len(sequences), length), padding)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = torch.tensor([AMINO_ACIDS.index(letter) for letter in sequence], dtype=torch.long)
    return rows


def _check(sequences: Sequence[str], name: str) -> None:
    if not sequences:
        raise ValueError(f"{name} is empty; give one protein or more")
    strange = {letter for sequence in sequences for letter in sequence} - set(AMINO_ACIDS)
    if strange:
        raise ValueError(f"{name} holds {sorted(strange)[0]!r}, which is none of the 20 amino acids {AMINO_ACIDS}")
