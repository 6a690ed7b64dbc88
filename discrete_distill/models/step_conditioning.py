"""Denoisers that are passed their step ``(t, s)``.

Shape suffixes: B batch, L length, D width.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .capabilities import EmbeddingDenoiser, require
from .denoiser_view import DenoiserView
from .layers import TimestepEmbedder, zero_initialised
from .lora import refuse_unmerged
from .wrappers import unwrap

STEP_FILE = "step_conditioning.safetensors"


class StepConditioned(DenoiserView):
    """A denoiser with an embedding of the step ``(t, s)`` added to its input embeddings.

    The last layer of the embedding starts at zero, so that the initial outputs are those of the denoiser. The embedding
    is in units of the root mean square of the table of input embeddings, so that a learning rate moves it in proportion
    to them. Without ``s`` nothing is added.

    Args:
        denoiser: an `EmbeddingDenoiser`; trained together with the embedding, if it has gradients.

    Raises:
        TypeError: if the denoiser is no `EmbeddingDenoiser`.

    Examples:
        >>> denoiser = as_denoiser(bert)
        >>> conditioned = StepConditioned(denoiser)
        >>> torch.allclose(conditioned(x_t, t, s=t - 0.25), denoiser(x_t, t), atol=1e-5)  # Until it is trained.
        True
    """

    scale: Tensor

    def __init__(self, denoiser: EmbeddingDenoiser) -> None:
        super().__init__(require(denoiser, EmbeddingDenoiser, needed_by="an embedding of the step"))
        weight_VD = self.denoiser.embedding_weight().detach()
        self.step_map = zero_initialised(TimestepEmbedder(weight_VD.shape[1], num_scalars=2)).to(weight_VD)
        self.register_buffer("scale", weight_VD.float().square().mean().sqrt())

    @property
    def accepts_step(self) -> bool:
        """True: the network is passed the end of its step."""
        return True

    @property
    def time_conditioned(self) -> bool:
        """True: its logits depend on ``t`` and ``s``."""
        return True

    def inputs(self, x_t: Tensor, t: Tensor, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the denoiser's call: ``s`` as a part of ``inputs_embeds``."""
        s = model_kwargs.pop("s", None)
        if s is None:
            return model_kwargs
        h_BLD = model_kwargs.get("inputs_embeds")
        h_BLD = self.embed(x_t) if h_BLD is None else h_BLD
        # Times are spread over the range that the sinusoids resolve.
        step_BD = self.scale * self.step_map(1000.0 * t, 1000.0 * s)
        return {**model_kwargs, "inputs_embeds": h_BLD + step_BD[:, None].to(h_BLD.dtype)}

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the denoiser by its own ``save_pretrained``, and ``step_conditioning.safetensors``; `load_denoiser`
        reads both back.

        Raises:
            ValueError: if there are LoRA weights that were not merged.
            TypeError: if the denoiser cannot be saved.
        """
        refuse_unmerged(self)
        if not hasattr(self.denoiser, "save_pretrained"):
            raise TypeError(f"a {type(self.denoiser).__name__} has no save_pretrained: save its state_dict()")
        cast(Any, self.denoiser).save_pretrained(save_directory)
        save_file(self._own_state(), Path(save_directory) / STEP_FILE)

    def _own_state(self) -> dict[str, Tensor]:
        return {
            name: value.detach().cpu().contiguous()
            for name, value in self.state_dict().items()
            if not name.startswith("denoiser.")
        }

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load the embedding of the step, strictly.

        Raises:
            ValueError: if names or shapes are others.
        """
        own = self._own_state()
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}:
            raise ValueError(f"the embedding of the step has weights {sorted(own)} of another shape, or others")
        self.load_state_dict(state, strict=False)


def step_conditioned(denoiser: nn.Module) -> nn.Module:
    """The denoiser, passed its step: itself where it has a way of its own, as a `DiT`, else in `StepConditioned`.

    Raises:
        TypeError: if it is neither passed its step by itself nor an `EmbeddingDenoiser`.
    """
    if getattr(denoiser, "accepts_step", False):
        return denoiser
    own = getattr(denoiser, "add_step_conditioning", None)
    if own is None:
        return StepConditioned(cast(Any, denoiser)).train(denoiser.training)
    own()
    return denoiser


def trainable_copy(denoiser: Any, *, step_conditioning: bool) -> nn.Module:
    """A copy whose parameters all have gradients, in evaluation mode: it has no dropout until its owner calls
    ``train()``.

    Args:
        denoiser: whose outputs the copy's first outputs are; it stays as it is. Of one inside DDP, ``torch.compile``
            or peft's `PeftModel`, the network inside is copied.
        step_conditioning: pass the copy the end of its step as well.
    """
    inner = unwrap(denoiser)[0]
    if not isinstance(inner, nn.Module):
        raise TypeError(
            f"a student starts from the weights of its teacher, and a {type(inner).__name__} has none: give a network "
            "of your own"
        )
    with torch.no_grad():
        made = copy.deepcopy(inner)
    if step_conditioning:
        made = step_conditioned(made)
    return made.requires_grad_(True).eval()
