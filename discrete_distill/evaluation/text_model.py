"""A denoiser as a model of text: completions of prompts, and bounds of log-likelihoods.

Shape suffixes: L length, R corruptions of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..checks import check_count
from ..process import Denoiser, MaskedDiffusion, evaluation_mode
from ..process.denoiser import device_of
from ..samplers import ConfidenceSampler, Sampler, in_blocks_of, prompted

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class TextModel:
    """Text in, text out.

    A result depends on the text, the seed and the options alone, not on the batch size, and a log-likelihood on its own
    text alone. Prompts of one length are sampled together, so that no denoiser has to know padding.

    Args:
        process: mask and schedule.
        denoiser: any `Denoiser`; read in evaluation mode.
        sampler: draws completions; of a network that reads by blocks, each block in turn (see `in_blocks_of`).
        encode: ids of a text, without special tokens, such as ``partial(tokenizer.encode, add_special_tokens=False)``.
        decode: text of ids.
        max_length: tokens of the longest sequence that the denoiser reads. Longer contexts lose their first tokens.
        prefix: ids before every sequence, such as ``[CLS]``.
        suffix: ids behind it.
        eos_token_id: ends a completion; None where there is none.
        num_samples: corruptions from which a bound is estimated (LLaDA, arXiv 2502.09992: 128), at numbers of masks
            that are spread evenly; one token needs a single one, and is exact.
        batch_size: sequences at a time.
        seed: of all draws.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if a number is below 1, or prefix and suffix leave no room.

    Examples:
        >>> digits = {"encode": lambda text: [int(each) for each in text], "decode": lambda ids: "".join(map(str, ids))}
        >>> model = TextModel(process, teacher, AncestralSampler(process, num_steps=4), **digits, max_length=16)
        >>> model.log_likelihood("01", "23")[0]  # -2 log(8)
        -4.158...
        >>> len(model.complete(["01"], max_new_tokens=6)[0])
        6
    """

    process: MaskedDiffusion
    denoiser: Denoiser
    sampler: Sampler
    _: KW_ONLY
    encode: Encode
    decode: Decode
    max_length: int
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()
    eos_token_id: int | None = None
    num_samples: int = 128
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_length", "num_samples", "batch_size"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, minimum=0)
        if self.room < 1:
            raise ValueError(
                f"max_length {self.max_length} leaves no room for text with {len(self.prefix)} ids of prefix and "
                f"{len(self.suffix)} of suffix"
            )

    @property
    def room(self) -> int:
        """Tokens of the longest text."""
        return self.max_length - len(self.prefix) - len(self.suffix)

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int],
        stop: Sequence[Sequence[str]] | None = None,
    ) -> list[str]:
        """Complete prompts.

        Args:
            prompts: texts.
            max_new_tokens: generated tokens of each prompt, or of all.
            stop: strings of each prompt; its completion ends before the first of them.

        Returns:
            The completions, without the prompts.

        Raises:
            ValueError: if a completion does not fit into ``max_length``, or numbers of prompts and options differ.
        """
        count = len(prompts)
        sizes = [max_new_tokens] * count if isinstance(max_new_tokens, int) else list(max_new_tokens)
        stops = [()] * count if stop is None else list(stop)
        if len(sizes) != count or len(stops) != count:
            raise ValueError(f"{count} prompts need as many options, got {len(sizes)} lengths and {len(stops)} stops")
        contexts = [self._last(self.encode(prompt), size) for prompt, size in zip(prompts, sizes, strict=True)]
        alike: dict[tuple[int, int], list[int]] = {}
        for number, (context, size) in enumerate(zip(contexts, sizes, strict=True)):
            alike.setdefault((len(context), size), []).append(number)
        completions = [""] * count
        for (_, size), numbers in alike.items():
            for first in range(0, len(numbers), self.batch_size):
                rows = numbers[first : first + self.batch_size]
                generated = self._complete([contexts[row] for row in rows], size, first)
                for row, ids in zip(rows, generated, strict=True):
                    completions[row] = self._text(ids, stops[row])
        return completions

    def log_likelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Estimate a lower bound of ``log p(continuation | context)``, in nats, as the negative NELBO.

        Args:
            context: text before; may be empty.
            continuation: text that is priced. Spaces at the end of the context count as its beginning.

        Returns:
            The bound, and whether decoding one most likely token after another gives the continuation.

        Raises:
            ValueError: if the continuation alone does not fit into ``max_length``.
        """
        bare = context.rstrip()
        continuation, context = context[len(bare) :] + continuation, bare
        given = list(self.encode(context)) if context else []
        whole = list(self.encode(context + continuation))
        wanted = whole[len(given) :]
        if not wanted:
            return 0.0, True
        given = self._last(whole[: len(given)], len(wanted))
        x_0, generation_mask = self._row(given, wanted)
        with torch.no_grad(), evaluation_mode(self.denoiser):
            nats = self._bound(x_0, generation_mask)
            one_by_one = ConfidenceSampler(self.process, num_steps=len(wanted), greedy=True)
            sampler = in_blocks_of(self.denoiser, one_by_one)
            x_init = x_0.masked_fill(generation_mask, self.process.mask_token_id)
            greedy = sampler(self.denoiser, x_init=x_init, generator=self._generator())
        return -nats, torch.equal(greedy.sequences, x_0)

    def rolling_log_likelihood(self, text: str) -> float:
        """Estimate a lower bound of ``log p(text)``, in nats. Each token of a text that is longer than ``max_length``
        is priced once, in windows of that length; the last one begins with tokens that were priced before."""
        ids, total = list(self.encode(text)), 0.0
        with torch.no_grad(), evaluation_mode(self.denoiser):
            for start in range(0, len(ids), self.room):
                stop = min(start + self.room, len(ids))
                total -= self._bound(*self._row(ids[max(stop - self.room, 0) : start], ids[start:stop]))
        return total

    def _last(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """The last ids of a context that fit before so many tokens."""
        kept = self.room - check_count("number of new tokens", new_tokens)
        if kept < 0:
            raise ValueError(
                f"{new_tokens} tokens do not fit into the {self.room} that max_length {self.max_length} leaves; take "
                "fewer, or raise it"
            )
        return list(ids)[max(len(ids) - kept, 0) :]

    def _row(self, given: Sequence[int], wanted: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One sequence, int64 ``[1, L]``, and where its text is priced, bool ``[1, L]``."""
        before, device = [*self.prefix, *given], device_of(self.denoiser)
        x_0 = torch.tensor([[*before, *wanted, *self.suffix]], device=device)
        place = torch.arange(x_0.shape[1], device=device)
        return x_0, ((place >= len(before)) & (place < len(before) + len(wanted)))[None]

    def _bound(self, x_0: Tensor, generation_mask: Tensor) -> float:
        """NELBO of one sequence, in nats."""
        repeats = self.num_samples if int(generation_mask.sum()) > 1 else 1
        bound = self.process.nelbo(
            self.denoiser,
            x_0.repeat(repeats, 1),
            by="count",
            generation_mask=generation_mask.repeat(repeats, 1),
            generator=self._generator(),
            batch_size=self.batch_size,
        )
        return float(bound.nats.double().mean())

    def _complete(self, contexts: Sequence[Sequence[int]], size: int, first_row: int) -> list[list[int]]:
        """Generated ids behind contexts of one length, the first of which has the number ``first_row``."""
        before = [[*self.prefix, *context] for context in contexts]
        length = len(before[0]) + size + len(self.suffix)
        x_init, _ = prompted(
            before,
            length,
            self.process.mask_token_id,
            suffixes=[self.suffix] * len(before),
            device=device_of(self.denoiser),
        )
        with torch.no_grad(), evaluation_mode(self.denoiser):
            sampler = in_blocks_of(self.denoiser, self.sampler)
            out = sampler(self.denoiser, x_init=x_init, generator=self._generator(), first_row=first_row)
        start = len(before[0])
        generated: Any = out.sequences[:, start : start + size].tolist()
        return generated

    def _text(self, ids: list[int], stop: Sequence[str]) -> str:
        """Decoded ids up to the first end of text, cut before the first stop string."""
        if self.eos_token_id in ids:
            ids = ids[: ids.index(self.eos_token_id)]
        text = self.decode(ids)
        places = [text.index(each) for each in stop if each and each in text]
        return text[: min(places)] if places else text

    def _generator(self) -> Generator:
        return Generator().manual_seed(self.seed)
