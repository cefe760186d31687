"""The command line: ``nbbn COMMAND ...``, the same as ``python -m nbbn COMMAND ...``.

One file a command, of which each has a line and an example for its help, ``add_arguments(parser)`` if it takes some,
and ``run(arguments)``, which does what its docstring, the help as well, says, and raises
:class:`~nbbn.cli._files.CommandError` for bad input. Exit statuses, signals and the form of error messages are decided
here, once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import nbbn
from nbbn.cli import bench, demo, info, moments, normalize, warmup
from nbbn.cli._files import CommandError

__all__ = ["main"]

OK = 0
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports
PIPE_CLOSED = 141  # 128 + SIGPIPE, likewise

# Not SIGQUIT: who sends that wants to see where the process is.
_ENDING = "SIGHUP", "SIGTERM", "SIGXCPU"
_AT_ONCE = 1.0  # seconds between signals that stand for one
_NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def parse_known_args(self, *given: Any, **options: Any) -> Any:
        found, rest = super().parse_known_args(*given, **options)
        if rest:  # here, and not in the parser of all commands, whose help has no options
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        _tell(f"{self.prog}: error: {message} (see {self.prog} --help)")
        self.exit(BAD_INPUT)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nbbn",
        description="Batch normalization for NumPy arrays on the CPU.",
        epilog="example: nbbn normalize people.csv standardized.csv (more: nbbn COMMAND --help)",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nbbn {nbbn.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in (demo, normalize, moments, bench, info, warmup):
        name, text, example = command.__name__.rpartition(".")[2], command.run.__doc__, f"example: {command.EXAMPLE}"
        one = commands.add_parser(name, help=command.HELP, description=text, epilog=example, allow_abbrev=False)
        one.set_defaults(run=command.run)
        if hasattr(command, "add_arguments"):
            command.add_arguments(one)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default with the arguments of the process, and return the exit status.

    0 on success, 2 on bad usage or bad input and where standard output is full (one line on standard error
    says what), 130 after Ctrl-C, 141 where the reader of standard output has gone; 129 after SIGHUP, 143 after
    SIGTERM, 152 after SIGXCPU.
    """
    parser, status = _build_parser(), OK
    try:
        try:
            arguments = parser.parse_args(argv)
            if arguments.command is None:
                parser.print_help(sys.stderr)
                return BAD_INPUT
            with _unwinding():
                arguments.run(arguments)
        except SystemExit as stop:  # of argparse, after --help, --version and errors, or of a signal
            status = int(stop.code or OK)
        if sys.stdout is not None:  # as it is in a process that began with it closed
            sys.stdout.flush()  # not at the interpreter's exit, where no error can be caught
        return status
    except CommandError as error:
        _tell(f"nbbn {arguments.command}: error: {error}")
        return BAD_INPUT
    except BrokenPipeError:
        _discard(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:  # of what commands print; those of files are CommandErrors
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        _discard(sys.stdout)
        _tell(f"nbbn: error: cannot write to standard output: {error.strerror}")
        return BAD_INPUT
    except KeyboardInterrupt:
        _tell("nbbn: interrupted")
        return INTERRUPTED


@contextlib.contextmanager
def _unwinding() -> Iterator[None]:
    """Raise SystemExit on signals that would end the process: half-written files go, as after Ctrl-C.

    Not on those that are ignored, as SIGHUP is under nohup, and not where a program that calls `main` has
    a handler of its own.
    """
    is_main = threading.current_thread() is threading.main_thread()
    found = [getattr(signal, name) for name in _ENDING if is_main and hasattr(signal, name)]
    ours = [number for number in found if signal.getsignal(number) is signal.SIG_DFL]
    ended = -math.inf

    def end(number: int, _: object) -> None:
        nonlocal ended
        # Where a terminal closes, both it and the shell send SIGHUP. A later signal counts again: what the first
        # one raised is lost where it came in the middle of a finalizer.
        before, ended = ended, time.monotonic()
        if ended - before > _AT_ONCE:
            # What is being opened just now is closed with the process.
            warnings.simplefilter("ignore", ResourceWarning)
            raise SystemExit(128 + number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _tell(text: str) -> None:
    """Write one line to standard error, whatever characters are in the names of files."""
    if sys.stderr is None:
        return
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # the exit status says it, too
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Point a stream at nothing, so that the flush at exit does not fail once more."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:  # or it has no descriptor
        os.dup2(nothing.fileno(), stream.fileno())
