"""Checks of an external model on a tiny batch: that its parts fit together and that it reads as a denoiser does.

Shape suffixes: B batch, L length, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..process import evaluation_mode
from .replaced import replaced
from .wrapped_denoiser import WrappedDenoiser
from .wrappers import unwrap

LARGEST_LOGIT = 1e4  # at which a cap on the logits shows, also in fp16
TOLERANCE = 0.02  # relative; a scale that is applied in half precision before the head or after it
UNCHANGED = 1e-3  # relative; below it, an answer is the same
ROUNDING = 16  # of the dtype's precision; between passes over different numbers of tokens
# Of a model that cannot be called in this way, say without a condition, nothing is known.
FAILURES = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)


class Verification:
    """Questions to a model inside its wrappers; each returns what differs, or None where nothing does.

    The mode of the model and the global random state stay as they are. A model on the meta device or sharded by FSDP
    is not called, and None is returned.

    Args:
        denoiser: of the model.
    """

    def __init__(self, denoiser: WrappedDenoiser) -> None:
        model = unwrap(denoiser.model)[0]
        self.denoiser = WrappedDenoiser(model, denoiser.call_signature, denoiser.schedule)
        self.device = next((value.device for value in self.denoiser.parameters()), torch.device("cpu"))

    def why_not_apart(self) -> str | None:
        """Why ``project(features(x_t, t))`` are not the logits.

        Random features are given to the head, large enough to show a cap on the logits, so that what the model does
        after its head is seen whatever its weights are.
        """
        return self._ask(self._head_difference)

    def why_not_embedded(self) -> str | None:
        """Why calls with ``inputs_embeds=embed(x_t)`` do not return what calls with ``x_t`` return."""
        return self._ask(self._embedding_difference)

    def why_not_both_ways(self) -> str | None:
        """Why the model does not read both ways: the last position reads the first, and not the first the last."""
        return self._ask(self._direction)

    def why_not_by_blocks(self) -> str | None:
        """Why a token does not read its own block and all earlier ones, as the mask of the call says."""
        return self._ask(self._block_difference)

    def why_not_padded(self) -> str | None:
        """Why padding is not left out: its content changes the logits of other positions."""
        return self._ask(self._padding_difference)

    def why_not_cached(self) -> str | None:
        """Why reading some of the tokens against kept keys and values does not return what reading all returns."""
        return self._ask(self._cache_difference)

    def _ask(self, question: Callable[[], str | None]) -> str | None:
        # Neither weights that are not there nor those of FSDP, which all processes would have to gather.
        if any(each.is_meta or hasattr(each, "device_mesh") for each in self.denoiser.parameters()):
            return None
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices, device_type="cuda"):
            try:
                return question()
            except FAILURES:
                return None

    def _call(self, ids: list[int], **given: Any) -> Tensor:
        return self.denoiser(self._ids(ids), torch.ones(1, device=self.device), **given)

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.device)

    def _head_difference(self) -> str | None:
        head = cast(nn.Module, self.denoiser.vocabulary_head)

        def call() -> Tensor:
            return self.denoiser._call(self._ids([0, 1, 0, 1]), torch.ones(1, device=self.device), None, {})

        with _inputs_kept(head) as read:
            call()
        if len(read) != 1 or not isinstance(read[0], Tensor):
            return f"its head is run {len(read)} times in a call"
        features = torch.randn_like(read[0])
        features = features * min(LARGEST_LOGIT / float(head(features).abs().max().clamp_min(1.0)), LARGEST_LOGIT)
        logits = head(features)
        with replaced(head, lambda *_, **__: features):
            after = call()
        with replaced(head, lambda *_, **__: logits):
            whole = call()
        apart = head(after)
        if apart.shape != whole.shape:
            return f"its logits have shape {tuple(whole.shape)}, those of its head alone {tuple(apart.shape)}"
        difference = float((apart - whole).abs().max())
        if difference > TOLERANCE * max(float(whole.abs().max()), 1.0):
            largest = float(logits.abs().max())
            return f"it changes the logits after its head (by {difference:.3g} at logits of {largest:.3g})"
        return None

    def _embedding_difference(self) -> str | None:
        with evaluation_mode(self.denoiser):
            plain = self._call([2, 3, 2, 3])
            h_BLD = self.denoiser.embed(self._ids([2, 3, 2, 3]))
            difference = _relative(plain, self._call([2, 3, 2, 3], inputs_embeds=h_BLD))
            if difference > UNCHANGED:
                return f"embed(x_t) in the place of x_t changes the logits by {difference:.1%}"
            # Four other embeddings of random direction, so that a table that is not read is noticed.
            other = self._call([2, 3, 2, 3], inputs_embeds=h_BLD + h_BLD.std() * torch.randn_like(h_BLD))
        return None if _relative(plain, other) > 0.0 else "other embeddings leave the logits as they are"

    def _direction(self) -> str | None:
        with evaluation_mode(self.denoiser):
            plain, last, first = (self._call(ids) for ids in ([2, 3, 2, 3], [2, 3, 2, 2], [3, 3, 2, 3]))
        reads_right = _relative(plain[:, :1], last[:, :1]) > 0.0
        # A model whose positions read nothing of one another, such as one that was not trained yet, is no causal one.
        if reads_right or _relative(plain[:, -1:], first[:, -1:]) == 0.0:
            return None
        return "its first position does not read the last, as in a model that reads from left to right"

    def _block_difference(self) -> str | None:
        denoiser, block = self.denoiser, cast(int, self.denoiser.block_length)
        x = ([2, 3] * block + [2])[: block + 2]
        x_last, x_first = [*x[:-1], 5 - x[-1]], [5 - x[0], *x[1:]]
        x_inner = [*x[: block - 1], 5 - x[block - 1], *x[block:]]
        with evaluation_mode(denoiser):
            plain, last = self._call(x), self._call(x_last)
            unchanged = max(UNCHANGED, ROUNDING * torch.finfo(plain.dtype).eps)
            if (difference := _relative(plain[:, :block], last[:, :block])) > unchanged:
                return f"a later block changes its logits by {difference:.1%}"
            if block > 1:
                inner, first = self._call(x_inner)[:, :1], self._call(x_first)[:, block - 1 : block]
                forward = _relative(plain[:, block - 1 : block], first) > 0.0
                if forward and _relative(plain[:, :1], inner) == 0.0:
                    return "the first position of a block does not read the last"
            if callable(getattr(denoiser, "paired_features", None)):
                x_t = self._ids([*x_first[:-1], x_last[-1]])
                paired = denoiser.project(denoiser.paired_features(x_t, self._ids(x)))
                if (difference := _relative(last[:, block:], paired[:, block:])) > unchanged:
                    return f"logits of noisy blocks, read in one pass behind clean ones, differ by {difference:.1%}"
        return None

    def _padding_difference(self) -> str | None:
        if self.denoiser.call_signature.attention == "none":
            return None
        real = self._ids([1, 1, 1, 0]).bool()
        with evaluation_mode(self.denoiser):
            plain, other = (self._call(ids, attention_mask=real)[:, :3] for ids in ([2, 3, 2, 3], [2, 3, 2, 2]))
        difference = _relative(plain, other)
        return f"the content of padding changes other logits by {difference:.1%}" if difference > UNCHANGED else None

    def _cache_difference(self) -> str | None:
        block = self.denoiser.block_length
        length = 4 if block is None else block + 2
        x, t = self._ids([2, 3] * length)[:, :length], torch.ones(1, device=self.device)
        # Attention both ways: the last two tokens, and two that stand before others. By blocks: behind the first block.
        begins = (2, 1) if block is None else (block,)
        with evaluation_mode(self.denoiser):
            whole = self.denoiser(x, t)
            try:
                cache = self.denoiser.prefill(x if block is None else x[:, :block], t)
                for begin in begins:
                    part = slice(begin, begin + 2 if block is None else begin + min(2, block))
                    starts = torch.tensor([begin], device=self.device)
                    logits = self.denoiser.denoise(x[:, part], t, cache, starts=starts)
                    difference = _relative(whole[:, part], logits)
                    if difference > max(UNCHANGED, ROUNDING * torch.finfo(whole.dtype).eps):
                        return f"logits of tokens read against kept keys differ by {difference:.1%}"
            except FAILURES as error:
                return f"a call with kept keys ends in {type(error).__name__}: {error}"
        return None


def _relative(values: Tensor, others: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return float((values - others).abs().max() / values.abs().max().clamp_min(1e-12))


@contextmanager
def _inputs_kept(head: nn.Module) -> Iterator[list[Any]]:
    read: list[Any] = []

    def note(features: Any, *_: Any, **__: Any) -> Any:
        read.append(features)
        return features

    with replaced(head, note):
        yield read
