"""Files of a recipe's own are read and written without the progress bars of transformers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_bars(*, expected: bool = False) -> Iterator[None]:
    """Inside, transformers shows no bar for the weights that it reads or writes.

    Args:
        expected: whether transformers will be imported inside, where it has not been before.
    """
    name = "transformers.utils.logging"
    logging: Any = importlib.import_module(name) if expected else sys.modules.get(name)
    shown = logging is not None and logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
