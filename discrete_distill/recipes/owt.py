"""``python -m discrete_distill.recipes.owt``: from a text to a few-step student of it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from ..process import MaskedDiffusion
from .corpus import load_streams, read_documents, split_documents
from .settings import TeacherConfig
from .teacher import train_teacher
from .tokenizer import TextTokenizer, train_tokenizer


def main() -> None:
    import tyro

    config = tyro.cli(TeacherConfig, args=sys.argv[2:])
    out = Path("runs/teacher")
    out.mkdir(parents=True, exist_ok=True)
    tokfile = out / "tokenizer.json"
    if not tokfile.exists():
        train_tokenizer(split_documents(read_documents("bundled"))["train"], 2048).save(tokfile)
    tok = TextTokenizer.load(tokfile)
    streams = load_streams("bundled", tok, 64, out / "tokens")
    process = MaskedDiffusion(tok.mask_token_id)
    acc = Accelerator(cpu=True, mixed_precision="bf16")
    torch.set_num_threads(2)
    train_teacher(config, streams, process, acc, out)


if __name__ == "__main__":
    main()
