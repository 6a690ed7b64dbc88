"""Options of the methods: dataclasses that describe paths, advantages, log-ratios, credit and regularisation."""

from .advantages import Advantages
from .changes import with_changes
from .corruption import Corruption, CorruptionByCount, CorruptionByParts, CorruptionByTime, ElboTimeWeight
from .credit import SequenceCredit, TokenCredit, VocabularyCredit, make_estimator
from .log_ratio import AutoregressiveRatio, AuxiliaryRatio, DiscriminatorRatio, PathRatio
from .paths import Paths
from .regularization import DataKL, PathKL, Regularization

__all__ = [
    "Advantages",
    "AutoregressiveRatio",
    "AuxiliaryRatio",
    "Corruption",
    "CorruptionByCount",
    "CorruptionByParts",
    "CorruptionByTime",
    "DataKL",
    "DiscriminatorRatio",
    "ElboTimeWeight",
    "PathKL",
    "PathRatio",
    "Paths",
    "Regularization",
    "SequenceCredit",
    "TokenCredit",
    "VocabularyCredit",
    "make_estimator",
    "with_changes",
]
