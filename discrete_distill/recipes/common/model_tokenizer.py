"""The tokenizer of a Hugging Face teacher: its mask, its frame of special tokens, and the ids that are no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...samplers import Frame
from .tokenizer import TextTokenizer


class ModelTokenizer(TextTokenizer):
    """A fast tokenizer of transformers with the vocabulary of its model.

    A text ends with the separator (or the end-of-text token, where there is none). All other special tokens, and
    classes of the model that the tokenizer has no entry for, are forbidden, and left out of encoded text.

    Args:
        tokenizer: of transformers; the settings of its backend are changed.
        num_classes: classes of the model.
        mask_token_id: of the mask, for tokenizers that do not name theirs.

    Raises:
        ValueError: if there is no mask, no token that ends a text, or the model has fewer classes than there are ids.
    """

    def __init__(self, tokenizer: Any, num_classes: int, mask_token_id: int | None = None) -> None:
        mask = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else mask_token_id
        if mask is None:
            raise ValueError(
                "the tokenizer of the teacher has no mask token, and its config.json no mask_token_id; name the token "
                "that the model was trained with as mask_token in tokenizer_config.json"
            )
        end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        if end is None:
            raise ValueError(
                "the tokenizer of the teacher has neither a separator nor an end-of-text token; name one as eos_token "
                "in tokenizer_config.json"
            )
        if tokenizer.mask_token_id is None:
            tokenizer.add_special_tokens({"mask_token": tokenizer.convert_ids_to_tokens(mask)})
        frame = Frame.from_tokenizer(tokenizer, 1)
        self.prefix, self.suffix = tuple(frame.prefix), tuple(frame.suffix)
        self.mask_token_id, self.eos_token_id = int(mask), int(end)
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.num_classes = num_classes
        entries = super().vocab_size
        if entries > num_classes:
            raise ValueError(
                f"the tokenizer of the teacher has {entries} ids, and its model {num_classes} classes; give a folder "
                "whose files belong together"
            )
        special = {*map(int, tokenizer.all_special_ids), *range(entries, num_classes)}
        self.forbidden_token_ids = tuple(sorted(special - {self.mask_token_id, self.eos_token_id}))

    @property
    def vocab_size(self) -> int:
        """Classes of the model."""
        return self.num_classes

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``, and beside it the files by which transformers reads it."""
        self.tokenizer.save_pretrained(path.parent)
        super().save(path)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without unknown and other special tokens."""
        left_out = {*self.forbidden_token_ids, self.mask_token_id}
        return [[index for index in row if index not in left_out] for row in super().encode(texts)]


def load_model_tokenizer(name_or_path: str, config: dict[str, Any]) -> ModelTokenizer:
    """The tokenizer beside a model.

    Args:
        name_or_path: folder or hub name of the model. Code that comes with it is never run.
        config: its ``config.json``.
    """
    from transformers import AutoTokenizer

    classes, mask = config.get("vocab_size"), config.get("mask_token_id")
    if not isinstance(classes, int):
        raise ValueError(f"the config.json of {name_or_path} states no vocab_size, got {classes!r}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, use_fast=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # transformers raises errors of a dozen kinds for a name or file that is wrong.
        raise FileNotFoundError(
            f"no tokenizer at {name_or_path} ({type(error).__name__}); save it beside the model, "
            "tokenizer.save_pretrained(folder)"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise FileNotFoundError(f"{name_or_path} has no fast tokenizer (tokenizer.json); save one beside the model")
    return ModelTokenizer(tokenizer, classes, mask if isinstance(mask, int) else None)
