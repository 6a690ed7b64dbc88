"""Model cards: method, data, settings and what was measured, or that it was not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

NOT_STATED = "Not stated by who saved it."


@dataclass(kw_only=True, frozen=True)
class ModelFacts:
    """Facts of a model card; an empty field is listed as not stated.

    Args:
        method: how the network was trained, and by which settings of which paper.
        data: what on, and its licence.
        settings: name and value of every setting that one needs to train it again.
        frontier: measurements, one mapping a row, all with the same columns: steps, temperature, entropy, perplexity.
        measured_by: judge, number and length of samples, precision: without them a perplexity cannot be compared.
        license: of the weights, as an identifier of the hub.

    Raises:
        ValueError: if the rows of the frontier do not have the same columns.

    Examples:
        >>> facts = ModelFacts(method="DiDi-Instruct, 1000 updates", license="mit")
        >>> student.save_pretrained("student", facts=facts)
        >>> "DiDi-Instruct, 1000 updates" in open("student/README.md").read()
        True
    """

    method: str = ""
    data: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    frontier: Sequence[Mapping[str, Any]] = ()
    measured_by: str = ""
    license: str | None = None

    def __post_init__(self) -> None:
        columns = {tuple(row) for row in self.frontier}
        if len(columns) > 1:
            raise ValueError(f"rows of the frontier have different columns: {' and '.join(map(str, sorted(columns)))}")


def model_card(kind: str, facts: ModelFacts | None = None, shape: Mapping[str, Any] | None = None) -> ModelCard:
    """The card of a network."""
    facts = facts if facts is not None else ModelFacts()
    data = ModelCardData(
        license=facts.license, library_name="discrete_distill", tags=["masked-diffusion", "distillation", kind.lower()]
    )
    sections = {
        "Method": facts.method or NOT_STATED,
        "Data": facts.data or NOT_STATED,
        "Settings": _table([{"setting": name, "value": value} for name, value in facts.settings.items()]) or NOT_STATED,
        "Measured frontier": _table(facts.frontier) or "Not measured.",
        "Shape": _table([{"field": name, "value": value} for name, value in _flat(shape or {})]) or NOT_STATED,
    }
    if facts.frontier:
        sections["Measured frontier"] += f"\n\n{facts.measured_by or 'How it was measured is not stated.'}"
    body = "\n\n".join(f"## {title}\n{text}" for title, text in sections.items())
    usage = "Load it with `discrete_distill.models.load_denoiser` or `load_discriminator`, by name or folder."
    return ModelCard(f"---\n{data.to_yaml()}\n---\n# {kind}\n{usage}\n\n{body}\n")


def _flat(shape: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in shape.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
