"""Whether a matcher draws the paths that a configuration's losses read."""

from __future__ import annotations

from ..paths import IntermediateStateMatcher
from .config import DiDiInstructConfig
from .options import VocabularyCredit


def check_matcher(matcher: IntermediateStateMatcher, config: DiDiInstructConfig) -> None:
    """Refuse a matcher of other paths than the losses of a configuration read."""
    branching = config.paths.branching
    if matcher.branching != branching:
        raise ValueError(f"branching is {matcher.branching} in the matcher and {branching} in the configuration")
    if isinstance(config.credit, VocabularyCredit) and (matcher.positions != "masked" or matcher.order != "random"):
        raise ValueError(
            "a VocabularyCredit reads logits of all masked positions of paths of random order; the matcher has "
            f"positions={matcher.positions!r} and order={matcher.order!r}"
        )
