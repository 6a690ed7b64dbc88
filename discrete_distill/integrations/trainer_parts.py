"""What transformers' Trainer is handed in the place of a configuration, of a wrapped student, and of data."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from ..models import DiTConfig
from ..process.blocks import reads_blocks


class OpenConfig(DiTConfig):
    """The same shape, as transformers treats a configuration: it sets fields of its own, and writes it down."""

    __setattr__ = object.__setattr__

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict())


class WrappedStudent(nn.Module):
    """A student inside what the Trainer wrapped it in, still passed its step; its head runs on all rows."""

    def __init__(self, wrapped: nn.Module, student: nn.Module) -> None:
        super().__init__()
        if reads_blocks(student):
            raise ValueError(
                f"the student reads by blocks, and a {type(wrapped).__name__} around it does not pass that on: train "
                "it in one process, or by the recipes on many"
            )
        self.wrapped = wrapped
        self.accepts_step = getattr(student, "accepts_step", False)

    def forward(self, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        return self.wrapped(x_t, t, **model_kwargs)


class NoData(Dataset):
    """As many empty rows as the Trainer reads, where a student is distilled from its teacher alone."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"label": 0}
