"""The linear layer from features to vocabulary logits.

Shape suffixes: D features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..kernels.padding import padded_linear


class VocabularyHead(nn.Linear):
    """A linear layer `[..., D] -> [..., V]` whose rows of logits are aligned for the kernels on a GPU."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., V]` of features `[..., D]`."""
        return padded_linear(features, self.weight, self.bias)

    def cast(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The layer with its weights cast to ``dtype`` once, for many calls; without gradient to the weights."""
        weight, bias = (each if each is None else each.detach().to(dtype) for each in (self.weight, self.bias))
        return lambda features: padded_linear(features.to(dtype), weight, bias)
