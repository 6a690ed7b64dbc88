"""Small files in the layouts in which others publish them: an MDLM teacher, a tokenizer, a GPT-2, a data set."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.tokenizer import MASK_TOKEN, TextTokenizer, train_tokenizer

WORDS = ("the state", "of the union", "is", "strong", "and", "our", "people", "are", "free", "tonight", "peace", "war")


def lines_of_text(count: int = 60, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=50)) for _ in range(count)]


def write_dataset(folder: Path) -> None:
    """A folder of shards: text, JSON lines, and a card."""
    folder.mkdir(parents=True)
    lines = lines_of_text()
    (folder / "a.txt").write_text("\n".join(lines[:30]), encoding="utf-8")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": line, "id": 1}) + "\n" for line in lines[30:]))
    (folder / "README.md").write_text("# A data set")


def write_tokenizer(folder: Path, backend: Tokenizer) -> None:
    """As transformers saves a fast tokenizer, with an end of text."""
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(folder)


def backend_without_mask(size: int = 300) -> Tokenizer:
    """Byte-level BPE, as GPT-2's, that knows no mask."""
    saved = json.loads(train_tokenizer(lines_of_text(), size).definition())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] != MASK_TOKEN]
    return Tokenizer.from_str(json.dumps(saved))


def write_mdlm(folder: Path, vocab_size: int, seed: int = 0) -> DiT:
    """As kuleshov-group/mdlm-owt; returns the network."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    network = DiT(
        DiTConfig(vocab_size=vocab_size, max_length=16, hidden_size=16, num_layers=1, num_heads=2, cond_size=8)
    )
    torch.nn.init.normal_(network.output_layer.linear.weight, std=0.2)
    weights = {f"backbone.{name}": value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["MDLM"],
        "auto_map": {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
        "model_type": "mdlm", "vocab_size": vocab_size, "model_length": 16, "hidden_dim": 16, "cond_dim": 8,
        "n_blocks": 1, "n_heads": 2, "dropout": 0.1, "time_conditioning": False, "return_dict": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return network


def write_gpt2(folder: Path, vocab_size: int, backend: Tokenizer | None) -> None:
    """As gpt2-large: a causal language model, and its tokenizer unless there is none."""
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **shape)).save_pretrained(folder)
    if backend is not None:
        write_tokenizer(folder, backend)


def run_tokenizer(backend: Tokenizer) -> TextTokenizer:
    """The recipe's tokenizer of a published one: the mask is added behind it."""
    copy = Tokenizer.from_str(backend.to_str())
    copy.add_special_tokens([MASK_TOKEN])
    return TextTokenizer(copy)
