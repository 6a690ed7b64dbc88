"""What sampling from a saved student needs in addition to weights: mask, forbidden ids, schedule, numbers of steps, and
the order in which masks are revealed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ... import process as processes
from ...checks import check_count
from ...process import MaskedDiffusion, MaskingSchedule, UnmaskingOrder, check_unmasking_order
from .hub import find_file
from .weights import CheckpointError, read_json

SAMPLING_FILE = "sampling.json"


class Sampling(NamedTuple):
    """How a student is sampled.

    Attributes:
        process: mask, forbidden ids and schedule.
        num_steps: numbers of steps that it was made for.
        order: in which its paths revealed their masks; that of `AncestralSampler`.

    Examples:
        >>> Sampling(process, num_steps=(4, 8), order="strided").num_steps
        (4, 8)
    """

    process: MaskedDiffusion
    num_steps: tuple[int, ...]
    order: UnmaskingOrder = "random"


def save_sampling(
    directory: str | Path, process: MaskedDiffusion, num_steps: Sequence[int] = (), order: UnmaskingOrder = "random"
) -> None:
    """Write ``sampling.json`` into the folder of a student; `load_sampling` reads it back.

    Args:
        directory: made if it is not there.
        process: mask, forbidden ids and schedule, one of the library's.
        num_steps: numbers of steps that the student was made for.
        order: in which its paths revealed their masks.

    Raises:
        ValueError: if the schedule is not one of the library's, a number of steps is below 1, or the order unknown.

    Examples:
        >>> save_sampling("student", MaskedDiffusion(8, LinearSchedule(), forbidden_token_ids=[0]), num_steps=[4, 8])
        >>> load_sampling("student")[:2]
        (MaskedDiffusion(mask_token_id=8, schedule=LinearSchedule(), forbidden_token_ids=(0,)), (4, 8))
    """
    schedule: Any = process.schedule
    name = type(schedule).__name__
    if getattr(processes, name, None) is not type(schedule):
        raise ValueError(f"a {name} is no schedule of discrete_distill.process, and is not saved: leave process out")
    check_unmasking_order(order)
    content = {
        "mask_token_id": process.mask_token_id,
        "forbidden_token_ids": list(process.forbidden_token_ids),
        "schedule": {"name": name, **asdict(schedule)},
        "num_steps": [check_count("num_steps", each) for each in num_steps],
        "order": order,
    }
    Path(directory).mkdir(parents=True, exist_ok=True)
    (Path(directory) / SAMPLING_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_sampling(name_or_path: str | Path, **hub: Any) -> Sampling:
    """Read ``sampling.json`` of a student.

    Args:
        name_or_path: folder, or name on the hub.
        **hub: see `load_denoiser`.

    Returns:
        A `Sampling`; the order of a file that names none is "random".

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it describes no process.

    Examples:
        >>> student.save_pretrained("student")
        >>> save_sampling("student", process, num_steps=[4])
        >>> process, steps, order = load_sampling("student")
        >>> sampler = AncestralSampler(process, num_steps=steps[0], order=order)
        >>> sampler(load_denoiser("student"), shape=(8, 16), generator=generator).nfe
        4
    """
    file = find_file(name_or_path, SAMPLING_FILE, **hub)
    if file is None:
        raise FileNotFoundError(f"no {SAMPLING_FILE} at {name_or_path}: make a MaskedDiffusion yourself")
    content = read_json(file)
    try:
        fields = dict(content["schedule"])
        kind: Any = getattr(processes, fields.pop("name"))
        if not (isinstance(kind, type) and issubclass(kind, MaskingSchedule)):
            raise TypeError(f"{kind!r} is no schedule")
        process = MaskedDiffusion(
            content["mask_token_id"], kind(**fields), forbidden_token_ids=content["forbidden_token_ids"]
        )
        order = content.get("order", "random")
        check_unmasking_order(order)
        return Sampling(process, tuple(check_count("num_steps", each) for each in content["num_steps"]), order)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} describes no process: {error}") from error
