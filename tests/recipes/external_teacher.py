"""Small Hugging Face models with their tokenizers in folders, as teachers of the text recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

transformers = pytest.importorskip("transformers")

WORDS = ["the", "state", "of", "union", "is", "strong", "and", "our", "people", "are", "free", "tonight"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASSES = 24  # more than the tokenizer has entries, as models are padded


def text(folder: Path) -> Path:
    """Sixty lines of a small language, with words that the tokenizer does not know."""
    lines = [" ".join(WORDS[(i * j) % 12] for j in range(1, 60)) + " strange" for i in range(1, 61)]
    path = folder / "speech.txt"
    path.write_text("\n".join(lines))
    return path


def save_tokenizer(folder: Path, kind: str) -> None:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    names: dict[str, Any] = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if kind == "bert":
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    else:
        names |= {"bos_token": "[CLS]", "eos_token": "[SEP]"}  # its mask is named in config.json alone
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


def save_teacher(folder: Path, kind: str) -> Path:
    """A model with random weights, and its tokenizer."""
    torch.manual_seed(0)
    size = {"vocab_size": CLASSES, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 24, "max_position_embeddings": 16}
    if kind == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**size))
    else:
        config = transformers.LlamaConfig(**size, num_key_value_heads=1)
        config.mask_token_id = SPECIAL.index("[MASK]")
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    save_tokenizer(folder, kind)
    return folder
