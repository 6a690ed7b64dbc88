"""The judge of a run, wherever it is from: it reads ids where its tokenizer is the run's, and text where it is not."""

from __future__ import annotations

from pathlib import Path

import torch

from ...evaluation import CausalLMJudge, Judge, TextJudge
from ..common.assets import BUNDLED, asset
from ..common.fingerprint import check_tokenizer, read_fingerprint
from ..common.tokenizer import TextTokenizer
from .judge import load_judge

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)


def load_judge_for(
    path: str, tokenizer: TextTokenizer, *, device: torch.device | str = "cpu", flag: str = "--judge.path"
) -> Judge:
    """Load a judge that prices samples of a tokenizer.

    A judge that the judge stage wrote has the fingerprint of its tokenizer beside it: where that is the run's, it reads
    the ids of samples. Any other judge with a tokenizer of its own reads their text.
    """
    folder = find_judge(path, flag=flag)
    if not folder.is_dir():
        return _reader_of_text(path, tokenizer, device, flag)
    stored = read_fingerprint(folder)
    if stored is None and any((folder / name).exists() for name in TOKENIZER_FILES):
        return _reader_of_text(path, tokenizer, device, flag)
    judge = load_judge(folder, device=device)
    own = asset(TOKENIZER_FILE) if path == BUNDLED else folder / TOKENIZER_FILE
    if stored is None or stored == tokenizer.fingerprint() or not own.exists():
        assert judge.vocab_size is not None
        check_tokenizer(folder, judge.vocab_size, tokenizer, flag=flag)
        if judge.eos_token_id != tokenizer.eos_token_id:
            raise ValueError(
                f"{folder} ends a text with token {judge.eos_token_id}, and the tokenizer with "
                f"{tokenizer.eos_token_id}; give {flag} another judge"
            )
        return judge
    return _reading_text(judge, TextTokenizer.load(own), tokenizer)


def find_judge(path: str, *, flag: str = "--judge.path") -> Path:
    """Look for a judge without loading its weights; a name on the hub stays as it is."""
    if path == BUNDLED:
        return asset("judge")
    from transformers import AutoConfig

    if not Path(path).is_dir():
        try:
            AutoConfig.from_pretrained(path, trust_remote_code=False)
        except Exception as error:  # transformers raises errors of a dozen kinds for a name that is wrong.
            raise FileNotFoundError(f"no judge at {path!r}; give {flag} a local folder") from error
    return Path(path)


def _reading_text(judge: CausalLMJudge, own: TextTokenizer, tokenizer: TextTokenizer) -> TextJudge:
    return TextJudge(
        judge.model,
        name=f"{judge.name} (text)",
        decode=tokenizer.decode,
        encode=lambda text: own.encode([text])[0],
        eos_token_id=tokenizer.eos_token_id,
        judge_eos_token_id=own.eos_token_id,
    )


def _reader_of_text(path: str, tokenizer: TextTokenizer, device: torch.device | str, flag: str) -> TextJudge:
    try:
        return TextJudge.from_pretrained(
            path, decode=tokenizer.decode, eos_token_id=tokenizer.eos_token_id, device=device
        )
    except OSError as error:
        raise FileNotFoundError(f"no judge at {path!r}; give {flag} a local folder") from error
