"""What the recipes' command lines share: ``[STAGE] [--preset NAME] [flags]``, exit codes, one-line errors."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ...distributed.collectives import leaving_processes
from ...streams import LastingStream

USER_ERROR, INTERRUPTED = 2, 130


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """One recipe's command line.

    Attributes:
        program: what follows ``python -m``.
        description: for ``--help``.
        stages: names; the first is the default.
        package: of the recipe, with ``PRESETS`` (settings by name) in its module ``settings`` and ``make_recipe(config,
            command)`` in its module ``recipe``; imported when they are needed.
        default_preset: which preset without ``--preset``.
    """

    program: str
    description: str
    stages: tuple[str, ...]
    package: str
    default_preset: Callable[[], str] = lambda: "demo"

    def presets(self) -> Mapping[str, Callable[[], Any]]:
        """Settings by name, made when they are called."""
        found: Mapping[str, Callable[[], Any]] = import_module(f"{self.package}.settings").PRESETS
        return found

    def main(self, arguments: list[str] | None = None) -> int:
        """Run; the exit code is 0, 2 for bad input or a run that diverged, or 130 after an interruption that was
        saved."""
        arguments = sys.argv[1:] if arguments is None else arguments
        output, errors = LastingStream(sys.stdout), LastingStream(sys.stderr)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = self._run(arguments)
            output.flush()
            # A reader that closed the pipe has seen enough; a disk that is full has lost something.
            if code == 0 and output.error is not None and not isinstance(output.error, BrokenPipeError):
                print(f"error: all was done, but standard output could not be written ({output.error})", file=errors)
                return USER_ERROR
        return code

    def _run(self, arguments: list[str]) -> int:
        try:
            stage, preset, flags = self.split_arguments(arguments)
            config = self.parse_config(preset, flags)
            with leaving_processes():
                command = shlex.join(["python", "-m", self.program, *arguments])
                import_module(f"{self.package}.recipe").make_recipe(config, command).execute(stage)
        except (ValueError, TypeError, OSError, FloatingPointError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt as interruption:
            print(f"\n{interruption or 'interrupted'}", file=sys.stderr)
            return INTERRUPTED
        return 0

    def split_arguments(self, arguments: list[str]) -> tuple[str, str, list[str]]:
        """Stage, preset, and what is left for the flags."""
        rest = list(arguments)
        stage = rest.pop(0) if rest and not rest[0].startswith("-") else self.stages[0]
        if stage not in self.stages:
            raise ValueError(f"unknown stage {stage!r}; choose one of {', '.join(self.stages)}")
        preset = None
        for index, argument in enumerate(rest):
            if argument == "--preset" and index + 1 < len(rest):
                preset, rest = rest[index + 1], rest[:index] + rest[index + 2 :]
                break
            if argument.startswith("--preset="):
                preset, rest = argument.removeprefix("--preset="), rest[:index] + rest[index + 1 :]
                break
        preset = self.default_preset() if preset is None else preset
        presets = self.presets()
        if preset not in presets:
            raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(presets)}")
        return stage, preset, rest

    def parse_config(self, preset: str, flags: list[str]) -> Any:
        """The preset with the flags applied; tyro prints help."""
        import tyro

        default = self.presets()[preset]()
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint):
                # A part of several kinds has the flags of the preset's own kind.
                return tyro.cli(
                    type(default),
                    default=default,
                    args=flags,
                    prog=f"python -m {self.program}",
                    description=self.description,
                    config=(tyro.conf.AvoidSubcommands,),
                )
        except SystemExit as ended:
            if not ended.code:
                raise
            words = re.sub(r"[│╭╮╰╯─]+|\x1b\[[0-9;]*m", " ", complaint.getvalue()).split()
            raise ValueError(" ".join(words)) from None
