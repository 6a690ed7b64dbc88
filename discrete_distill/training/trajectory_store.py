"""Trajectories of a teacher on disk: recorded once, in parts that a run which was stopped need not repeat.

Shape suffixes: N rows of the store, B batch, L length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from .. import draws
from ..checks import check_count
from ..digests import weights_digest
from ..distillation.trajectories import PADDING, Trajectories, draw_trajectories
from ..files import read_json_object, write_text
from ..models import DiTConfig
from ..models.wrappers import unwrap
from ..process import Denoiser
from ..process.conditions import take_rows
from ..process.sequences import real_tokens
from ..samplers import Frame, Sampler
from .seeding import step_generator
from .stored_settings import Setting, flat_settings, refuse_changes
from .token_cache import cached_arrays

SETTINGS_FILE = "trajectories.json"
ARRAYS = ("x_0", "reveal_step")
CALLED_BY = ("block_length", "time_conditioning")  # of a `DiT`: no weight tells them


class TrajectoryStore(Dataset):
    """Recorded trajectories, mapped from disk.

    As a data set it has rows of ``input_ids``, ``reveal_step``, ``prompt_mask`` and ``attention_mask`` (``[L]`` each),
    which transformers' Trainer and a ``DataLoader`` read; `sample` and `rows` return batches for a loop of one's own.

    Args:
        folder: of a finished store.

    Raises:
        FileNotFoundError: if there is no store.
        ValueError: if a part is missing or damaged: `record`, with the arguments of the store, makes it again.

    Examples:
        >>> sampler = BlockwiseSampler(ConfidenceSampler(process, num_steps=4), block_length=8)
        >>> store = TrajectoryStore.record("trajectories", sampler, teacher, shape=(8, 16))
        >>> from discrete_distill.distillation.methods import CertaintyForcing
        >>> method = CertaintyForcing(networks, process)
        >>> rollout = method.rollout(reference=store.sample(4, generator=generator), generator=generator)
        >>> method.loss("student", rollout).loss.backward()
    """

    def __init__(self, folder: str | Path) -> None:
        def missing(number: int) -> dict[str, np.ndarray]:
            raise ValueError(f"part {number} of {folder} is missing or damaged; record with the same arguments again")

        self.folder = Path(folder)
        if not (self.folder / SETTINGS_FILE).exists():
            raise FileNotFoundError(f"{folder} holds no trajectories; record them with TrajectoryStore.record")
        self._open(missing)

    @classmethod
    def record(
        cls,
        folder: str | Path,
        sampler: Sampler,
        teacher: Denoiser,
        shape: tuple[int, int | Frame] | None = None,
        *,
        x_init: Tensor | None = None,
        attention_mask: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        teacher_id: str | None = None,
        tokenizer: str | None = None,
    ) -> TrajectoryStore:
        """Record what the folder does not hold yet; with all of it there, nothing is drawn.

        Each batch is drawn from a seed of its own and renamed into place as a whole, so that a run which is killed and
        started again ends with the rows of an uninterrupted one. A damaged part is drawn again.

        Args:
            folder: of this store alone.
            sampler: see `draw_trajectories`.
            teacher: any `Denoiser`.
            shape: ``(N, L)`` of unconditional samples, or ``(N, Frame)``; or give ``x_init``.
            x_init: int64 ``[N, L]``, prompts and masks.
            attention_mask: bool ``[N, L]``, true at real tokens.
            model_kwargs: passed to the teacher by keyword; tensors with an entry for each of the N rows follow them.
            device: of unconditional samples.
            batch_size: rows that are drawn, and written, at a time.
            seed: of the draws.
            teacher_id: names the teacher's weights; by default a digest of them.
            tokenizer: fingerprint of the tokenizer whose ids these are.

        Raises:
            TypeError: if a number is no integer, or the teacher is a function without ``teacher_id``.
            ValueError: if the folder holds trajectories of another teacher, or of one that was called in another way,
                of another tokenizer, sampler, length or seed, or of other prompts: names what differs; or if the
                attention mask does not have the shape of the prompts.
        """
        check_count("batch_size", batch_size)
        check_count("seed", seed, minimum=0)
        if (shape is None) == (x_init is None):
            raise ValueError("give either shape=(rows, length) or x_init, and not both")
        count = check_count("number of rows", len(x_init) if x_init is not None else shape[0])  # type: ignore[index]
        if attention_mask is not None and x_init is not None:
            real_tokens(attention_mask, x_init.shape)  # refuses one of another shape
        given = {"prompts": x_init, "attention_mask": attention_mask}
        given |= {f"model_kwargs.{name}": value for name, value in (model_kwargs or {}).items()}
        settings: dict[str, Setting] = {
            **_teacher_settings(teacher, teacher_id),
            "tokenizer": tokenizer,
            "sampler": type(sampler).__name__,
            **flat_settings(sampler, "sampler", leave_out=_WITHOUT_EFFECT),
            **flat_settings(shape[1] if x_init is None else x_init.shape[1], "length"),  # type: ignore[index]
            **{name: _digest(value) for name, value in given.items()},
            "rows": count,
            "batch_size": batch_size,
            "seed": seed,
        }

        def draw(number: int) -> dict[str, np.ndarray]:
            index = torch.arange(number * batch_size, min((number + 1) * batch_size, count))
            drawn = draw_trajectories(
                sampler,
                teacher,
                None if shape is None else (len(index), shape[1]),
                x_init=None if x_init is None else x_init[index],
                attention_mask=None if attention_mask is None else attention_mask[index],
                model_kwargs=take_rows(model_kwargs or {}, index, count),
                generator=step_generator(seed, number),
                device=device,
            )
            arrays = (drawn.x_0, drawn.reveal_step)
            return {
                name: array.cpu().numpy().astype(np.int32).ravel() for name, array in zip(ARRAYS, arrays, strict=True)
            }

        store = cls.__new__(cls)
        store.folder = Path(folder)
        store.folder.mkdir(parents=True, exist_ok=True)
        file = store.folder / SETTINGS_FILE
        if file.exists() and any(store.folder.glob("part-*")):
            saved = read_json_object(file)
            # Earlier versions did not note how the teacher is called.
            unnoted = {name for name in settings if name.startswith("teacher.")} - saved.keys()
            refuse_changes(saved, {name: settings[name] for name in settings.keys() - unnoted}, where=folder)
        else:
            write_text(file, json.dumps(settings, indent=1))
        store._open(draw)
        return store

    def _open(self, make: Callable[[int], dict[str, np.ndarray]]) -> None:
        """Map all parts, those that are missing made first."""
        settings = read_json_object(self.folder / SETTINGS_FILE)
        self._count, self._batch_size = int(settings["rows"]), int(settings["batch_size"])
        self._parts: list[tuple[np.ndarray, ...]] = []
        for number in range(-(-self._count // self._batch_size)):
            found = cached_arrays(self.folder / f"part-{number:06d}", ARRAYS, partial(make, number))
            rows = min(self._batch_size, self._count - number * self._batch_size)
            self._parts.append(tuple(found[name].array.reshape(rows, -1) for name in ARRAYS))

    def __len__(self) -> int:
        return self._count

    def rows(self, index: Tensor) -> Trajectories:
        """Read rows, on the CPU.

        Args:
            index: int64 ``[B]``, from 0.

        Raises:
            IndexError: if a row is not there.
        """
        wanted = index.tolist()
        if not all(0 <= row < self._count for row in wanted):
            raise IndexError(f"rows are numbered 0 ... {self._count - 1}, got {wanted}")
        places = [divmod(row, self._batch_size) for row in wanted]
        arrays = (np.stack([self._parts[part][which][row] for part, row in places]) for which in range(len(ARRAYS)))
        return Trajectories(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))

    def sample(self, batch_size: int, *, generator: Generator | None = None) -> Trajectories:
        """Draw rows at random, with replacement, on the CPU.

        Args:
            batch_size: number of rows.
            generator: source of randomness.
        """
        check_count("batch_size", batch_size)
        return self.rows(draws.randint(self._count, (batch_size,), device="cpu", generator=generator))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        found = self.rows(torch.tensor([row]))
        return {
            "input_ids": found.x_0[0],
            "reveal_step": found.reveal_step[0],
            "prompt_mask": ~found.generation_mask[0],
            "attention_mask": found.reveal_step[0] != PADDING,
        }


_WITHOUT_EFFECT = tuple(
    f"sampler.{prefix}{name}" for prefix in ("", "sampler.") for name in ("progress", "check", "chunk_rows", "static")
)


def _teacher_settings(teacher: Denoiser, teacher_id: str | None) -> dict[str, Setting]:
    """The weights, and how they are called: what a call signature says, or the configuration of a `DiT`."""
    if teacher_id is None and not isinstance(teacher, nn.Module):
        raise TypeError("a function has no weights by which its trajectories could be known; give teacher_id")
    inner = unwrap(teacher)[0]
    config = getattr(inner, "config", None)
    called = {name: getattr(config, name) for name in CALLED_BY} if isinstance(config, DiTConfig) else {}
    return {
        "teacher": weights_digest(teacher) if teacher_id is None else teacher_id,  # type: ignore[arg-type]
        **flat_settings(getattr(inner, "call_signature", None), "teacher.call_signature"),
        **flat_settings(called, "teacher"),
    }


def _digest(value: Any) -> str | None:
    """Sixteen digits that name a tensor; the representation of another value."""
    if not isinstance(value, Tensor):
        return None if value is None else repr(value)
    content = value.detach().cpu().contiguous()
    return hashlib.sha256(repr((content.shape, content.dtype)).encode() + content.numpy().tobytes()).hexdigest()[:16]
