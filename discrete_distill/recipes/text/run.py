"""A run over text: the tokenizer that the settings name."""

from __future__ import annotations

from pathlib import Path

from ..common.assets import BUNDLED, asset
from ..common.corpus import split_documents
from ..common.documents import read_documents
from ..common.model_tokenizer import load_model_tokenizer
from ..common.run import Run
from ..common.settings import RecipeConfig
from ..common.teacher import external_config
from ..common.tokenizer import TextTokenizer, gpt2_tokenizer, train_tokenizer


def text_run(config: RecipeConfig, command: str) -> Run:
    """A run over text, with the tokenizer that ``--data.tokenizer`` names."""
    return Run(config, command, lambda: find_tokenizer(config))


def find_tokenizer(config: RecipeConfig) -> TextTokenizer:
    """Read the tokenizer that the settings name, or train it on the text; of a Hugging Face teacher, its own.

    Raises:
        FileNotFoundError: if it cannot be had.
        ValueError: if it is damaged.
    """
    name = config.data.tokenizer
    for teacher in (config.teacher.path, config.teacher.init):
        model = external_config(teacher)
        if model is not None:
            return load_model_tokenizer(teacher, model)
    if name == BUNDLED:
        return TextTokenizer.load(asset("tokenizer.json"))
    if name == "train":
        documents = split_documents(read_documents(config.data.source))["train"]
        return train_tokenizer(documents, config.data.vocab_size)
    if name.endswith(".json"):
        if not Path(name).exists():
            raise FileNotFoundError(f"no tokenizer at {name}; give --data.tokenizer another path")
        return TextTokenizer.load(Path(name))
    return gpt2_tokenizer(name)
