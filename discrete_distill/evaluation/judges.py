"""Judges: models that say how many nats each token of a sample costs.

Shape suffixes: B samples, L tokens of a sample, W tokens of a window, V vocabulary of the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_token_ids
from .ending import before_end
from .pretrained import encoder_of, end_of_text_of, load_causal_lm, shown_name


class TokenNats(NamedTuple):
    """Prices of a batch.

    Attributes:
        nats: ``-log p(token | tokens before it)``, in nats, ``[B, L]``; only counted entries have a meaning.
        loss_mask: bool ``[B, L]``, the tokens that were predicted and belong to the text.

    Examples:
        >>> nats = judge.token_nats(data)
        >>> nats.loss_mask[0].long()  # The first token is context.
        tensor([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    """

    nats: Tensor
    loss_mask: Tensor


class Judge(Protocol):
    """Anything that computes negative log-likelihoods of tokens, under a name that goes into every report.

    Examples:
        >>> class UniformJudge:
        ...     name = "uniform over 8 tokens"
        ...     def token_nats(self, sequences):
        ...         return TokenNats(torch.full(sequences.shape, 8.0).log(), loss_mask=sequences >= 0)
        >>> round(generative_perplexity(data, UniformJudge()).perplexity, 4)
        8.0
    """

    @property
    def name(self) -> str: ...

    def token_nats(self, sequences_BL: Tensor, /) -> TokenNats:
        """Prices of the tokens of ``sequences_BL`` (int64 ``[B, L]``, ids of the *sampler's* vocabulary).

        A judge with a tokenizer of its own returns prices of its own tokens, so their length may differ from
        ``L``.
        """
        ...


class CausalLMJudge:
    """An autoregressive model over the same token ids as the samples.

    The first token is context and is not counted, as is usual for GPT-2. Text longer than the context is read
    in windows that overlap, each token priced once, with the longest past that its window allows.

    Args:
        model: a Hugging Face causal language model, or any module with ``model(input_ids=[B, W])`` that
            returns logits ``[B, W, V]`` or an object that holds them as ``logits``. Put in evaluation mode
            here, once.
        name: under which results are reported.
        eos_token_id: nothing after the first one is counted; None if there is none.
        context: tokens of a window; by default that of ``model.config``.
        stride: tokens by which windows advance, below ``context``; half the context by default.

    Raises:
        ValueError: if the context is unknown or below 2, or the stride is not in ``[1, context)``.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=9, max_position_embeddings=16, **sizes))
        >>> judge = CausalLMJudge(model, name="tiny Llama", eos_token_id=None)
        >>> figures = generative_perplexity(data, judge)
        >>> figures.judge, figures.num_tokens  # 8 * 15
        ('tiny Llama', 120)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        eos_token_id: int | None,
        context: int | None = None,
        stride: int | None = None,
    ) -> None:
        context = context if context is not None else _context_of(model)
        if context is None or context < 2:
            raise ValueError(f"the context of judge {name!r} is {context}; pass context = 2 or more tokens")
        stride = stride if stride is not None else max(1, context // 2)
        if not 1 <= stride < context:
            raise ValueError(f"stride must lie in [1, {context}), the judge's context, got {stride}")
        self.model = model.eval()
        self.name = name
        self.eos_token_id = eos_token_id
        self.context = context
        self.stride = stride
        stated = getattr(getattr(model, "config", None), "vocab_size", None)
        self.vocab_size = stated if isinstance(stated, int) else None

    @torch.no_grad()
    def token_nats(self, sequences_BL: Tensor) -> TokenNats:
        """See `Judge`.

        Raises:
            ValueError: if an id is outside the judge's vocabulary.
        """
        parameter = next(self.model.parameters(), None)
        ids_BL = sequences_BL if parameter is None else sequences_BL.to(parameter.device)
        loss_mask_BL = self.prepare(ids_BL)[1]
        nats_BL = torch.zeros(ids_BL.shape, dtype=torch.float32, device=ids_BL.device)
        for start, first_new, end in windows(ids_BL.shape[1], self.context, self.stride):
            priced = self._price(ids_BL[:, start:end])
            nats_BL[:, first_new:end] = priced[:, first_new - start - 1 :]
        return TokenNats(nats_BL, loss_mask_BL)

    def prepare(self, sequences_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Ids as the model reads them, and which of them are counted; ``[B, L]`` both."""
        check_token_ids(sequences_BL)
        # Looked at first where the size is known: an embedding fails on other ids, on CUDA for the whole process.
        if self.vocab_size is not None:
            self._check_ids(sequences_BL, self.vocab_size)
        loss_mask_BL = before_end(sequences_BL, self.eos_token_id)
        loss_mask_BL[:, :1] = False
        return sequences_BL, loss_mask_BL

    def _price(self, ids_BW: Tensor) -> Tensor:
        """``-log p`` of all tokens of a window but its first, fp32 ``[B, W - 1]``."""
        out = self.model(input_ids=ids_BW)
        logits_BWV: Tensor = getattr(out, "logits", out)
        self._check_ids(ids_BW, logits_BWV.shape[-1])
        rows = [
            F.cross_entropy(logits_WV[:-1].float(), ids_W[1:], reduction="none")
            for logits_WV, ids_W in zip(logits_BWV, ids_BW, strict=True)
        ]
        return torch.stack(rows)

    def _check_ids(self, ids_BW: Tensor, vocab_size: int) -> None:
        smallest, largest = int(ids_BW.min()), int(ids_BW.max())
        if smallest < 0 or largest >= vocab_size:
            raise ValueError(
                f"token id {smallest if smallest < 0 else largest} is outside the {vocab_size} classes of judge "
                f"{self.name!r}; a judge of another vocabulary reads text: use TextJudge"
            )


class TextJudge:
    """An autoregressive model with a tokenizer of its own: samples are decoded and encoded again.

    This is how the field reports generative perplexity with GPT-2 Large (MDLM, arXiv 2406.07524;
    DiDi-Instruct, arXiv 2509.25035). The nats are per token *of the judge*. A sample is cut at its first
    end-of-text token before it is decoded, and an end (or start) of text is handed to the judge as its own
    end-of-text token.

    Args:
        model: as for `CausalLMJudge`.
        name: under which results are reported.
        decode: ids of one sample, without end-of-text tokens, to text.
        encode: text to ids of the judge, without special tokens.
        eos_token_id: the end-of-text id of the samples; None if there is none.
        judge_eos_token_id: the judge's end-of-text id.
        context: see `CausalLMJudge`.
        stride: see `CausalLMJudge`.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=9, max_position_embeddings=16, **sizes))
        >>> decode, encode = lambda ids: "".join(map(str, ids)), lambda text: [int(each) for each in text]
        >>> texts = {"decode": decode, "encode": encode, "eos_token_id": None, "judge_eos_token_id": 8}
        >>> judge = TextJudge(model, name="tiny Llama", **texts)
        >>> generative_perplexity(data, judge).num_tokens
        120
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        decode: Callable[[list[int]], str],
        encode: Callable[[str], Sequence[int]],
        eos_token_id: int | None,
        judge_eos_token_id: int,
        context: int | None = None,
        stride: int | None = None,
    ) -> None:
        self._inner = CausalLMJudge(model, name=name, eos_token_id=judge_eos_token_id, context=context, stride=stride)
        self.name = name
        self.decode = decode
        self.encode = encode
        self.eos_token_id = eos_token_id
        self.judge_eos_token_id = judge_eos_token_id

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        decode: Callable[[list[int]], str],
        eos_token_id: int | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TextJudge:
        """A judge from the Hugging Face hub or a local folder, loaded once; ``"gpt2-large"`` is the field's.

        Its name is that on the hub; of a folder, the last part of its path and first digits of its weights' SHA-256.

        Args:
            name_or_path: of model and tokenizer.
            decode: ids of one sample to text.
            eos_token_id: the end-of-text id of the samples.
            device: where the judge runs.
            dtype: of its weights; anything but fp32 is added to its name.

        Raises:
            OSError: if the judge is neither on disk nor to be had from the hub.
            ValueError: if it is damaged, states no end of text, or needs code of its own; see `load_causal_lm`.
        """
        model, tokenizer = load_causal_lm(name_or_path, dtype=dtype, device=device)
        precision = "" if dtype == torch.float32 else f" ({str(dtype).removeprefix('torch.')})"
        return cls(
            model,
            name=f"{shown_name(name_or_path)}{precision}",
            decode=decode,
            encode=encoder_of(tokenizer),
            eos_token_id=eos_token_id,
            judge_eos_token_id=end_of_text_of(model, tokenizer, name_or_path),
        )

    def token_nats(self, sequences_BL: Tensor) -> TokenNats:
        """See `Judge`; ``[B, M]`` with ``M`` the longest encoded sample."""
        padded_BM, loss_mask_BM = self.prepare(sequences_BL)
        nats_BM = self._inner.token_nats(padded_BM).nats
        return TokenNats(nats_BM, loss_mask_BM.to(nats_BM.device))

    @property
    def model(self) -> nn.Module:
        """The language model."""
        return self._inner.model

    @property
    def context(self) -> int:
        """Tokens of its window."""
        return self._inner.context

    def prepare(self, sequences_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of the judge, padded, and which of them are counted; ``[B, M]`` both."""
        encoded = [self._reencode(row, keep) for row, keep in zip(*self._as_lists(sequences_BL), strict=True)]
        lengths = torch.tensor([len(ids) for ids in encoded])
        padded_BM = torch.full((len(encoded), max(1, int(lengths.max()))), self.judge_eos_token_id)
        for padded_M, ids in zip(padded_BM, encoded, strict=True):
            padded_M[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        is_text = torch.arange(padded_BM.shape[1]) < lengths[:, None]
        return padded_BM, self._inner.prepare(padded_BM)[1] & is_text

    def _as_lists(self, sequences_BL: Tensor) -> tuple[list[list[int]], list[int]]:
        """Ids of each sample, and how many of them belong to its text."""
        return sequences_BL.tolist(), before_end(sequences_BL, self.eos_token_id).sum(dim=1).tolist()

    def _reencode(self, row: list[int], keep: int) -> list[int]:
        start, end = row[:1] == [self.eos_token_id], keep > 1 and row[keep - 1] == self.eos_token_id
        text = self.decode(row[int(start) : keep - int(end)])
        marker = [self.judge_eos_token_id]
        return [*(marker * start), *self.encode(text), *(marker * end)]


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """``(start, first_new, end)`` of overlapping windows, each of which prices ``first_new .. end``.

    Every token but the first is priced exactly once, and never as the first of its window.
    """
    start, first_new = 0, 1
    while first_new < length:
        end = min(start + context, length)
        yield start, first_new, end
        first_new = end
        start += stride


def _context_of(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    for name in ("n_positions", "max_position_embeddings"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None
