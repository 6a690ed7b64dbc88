"""Files that ship with the package: text, tokenizer, teacher and judge of the demo."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

BUNDLED = "bundled"


def asset(name: str) -> Path:
    """Path of a shipped file or folder.

    Raises:
        FileNotFoundError: if it is not there.
    """
    path = Path(str(resources.files("discrete_distill.recipes"))) / "bundled" / name
    if not path.exists():
        raise FileNotFoundError(f"the package lacks its file bundled/{name}; install it again")
    return path


def resolve(path: str, name: str) -> str:
    """``path``, or where it is 'bundled' the path of the shipped file ``name``."""
    return str(asset(name)) if path == BUNDLED else path
