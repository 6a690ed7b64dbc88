"""Protein figures: alignments against a plain Smith-Waterman, known compositions, copies and strangers."""

import math
import random

import pytest

from discrete_distill.evaluation.protein import (
    AMINO_ACIDS,
    composition_divergence,
    count_clusters,
    local_identity,
    low_complexity_fraction,
    measure_proteins,
    nearest_identity,
)


def plain_matches(a: str, b: str) -> int:
    """Smith-Waterman cell by cell, with (score, matches) compared as pairs."""
    best, row = (0, 0), [(0, 0)] * (len(b) + 1)
    for i in range(len(a)):
        new = [(0, 0)]
        for j in range(len(b)):
            same = a[i] == b[j]
            diagonal = (row[j][0] + (1 if same else -1), row[j][1] + same)
            up, left = ((cell[0] - 2, cell[1]) for cell in (row[j + 1], new[j]))
            value = max(diagonal, up, left, (0, 0))
            new.append(value if value[0] >= 0 else (0, 0))
        row = new
        best = max(best, *row)
    return best[1]


def protein(seed: int, length: int, letters: str = AMINO_ACIDS) -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


def test_identity_is_that_of_the_best_local_alignment() -> None:
    pairs = [(protein(k, 5 + 3 * k, "ACD"), protein(99 - k, 30 - k, "ACD")) for k in range(12)]
    a = protein(1, 40)
    pairs += [(a, a), (a, a[10:]), (a[:20], a[:8] + "WW" + a[8:]), (a, protein(2, 60)), ("A", "C")]
    expected = [plain_matches(x, y) / len(x) for x, y in pairs]
    assert local_identity(pairs, batch_size=5) == pytest.approx(expected)
    assert local_identity([(a, a), (a, a[10:])]) == [1.0, 0.75]
    assert local_identity([]) == []


def test_the_nearest_training_sequence_is_found_among_many() -> None:
    training = [protein(k, 120) for k in range(60)]
    copy, fragment, stranger = training[17], training[42][30:90], protein(1000, 100)
    identities = nearest_identity([copy, fragment, stranger], training, candidates=5)
    assert identities[:2] == [1.0, 1.0]
    assert identities[2] < 0.3
    assert nearest_identity(["AC"], training) == [0.0]


def test_clusters_are_counted() -> None:
    families = [protein(k, 80) for k in range(3)]
    relatives = [each[:30] + "W" + each[31:] for each in families]
    assert count_clusters(families) == 3
    assert count_clusters(families + relatives) == 3
    assert count_clusters(["ACDEFGHIKL"] * 5) == 1


def test_composition_and_complexity() -> None:
    assert composition_divergence(["ACAC"], ["CACA"], 1) == 0.0
    assert composition_divergence(["AAAA"], ["CCCC"], 2) == pytest.approx(math.log(2.0))
    assert composition_divergence(["AAAC"], ["AACC"], 1) == pytest.approx(
        0.5 * (0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375))
        + 0.5 * (0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375))
    )
    with pytest.raises(ValueError, match="no sequence is 2 residues long"):
        composition_divergence(["A"], ["AC"], 2)
    assert low_complexity_fraction(["Q" * 30]) == 1.0
    assert low_complexity_fraction([AMINO_ACIDS * 3]) == 0.0
    assert 0.0 < low_complexity_fraction([AMINO_ACIDS + "Q" * 12 + AMINO_ACIDS]) < 1.0
    assert low_complexity_fraction(["ACDEFGHIKLM"]) == 0.0  # Shorter than a window.


def test_all_figures_of_a_set() -> None:
    training = [protein(k, 100) for k in range(20)]
    real, copies = [protein(k, 100) for k in range(100, 110)], training[:4] * 2
    honest, memorised = (measure_proteins(each, real, training) for each in (real, copies))
    assert honest.amino_acid_divergence == 0.0
    assert (honest.count, honest.residues, honest.clusters) == (10, 1000, 1.0)
    assert (memorised.identity, memorised.maximum_identity, memorised.clusters) == (1.0, 1.0, 0.5)
    assert honest.identity < 0.3
    with pytest.raises(ValueError, match="sequences is empty"):
        measure_proteins([], real, training)
    with pytest.raises(ValueError, match="reference holds 'X'"):
        measure_proteins(real, ["AXC"], training)


def test_a_protein_of_thousands_of_residues_is_all_of_itself() -> None:
    long = protein(0, 4200)
    assert local_identity([(long, long)]) == [1.0]
    with pytest.raises(ValueError, match="candidates"):
        measure_proteins(["ACD"], ["ACD"], ["ACD"], candidates=0)
