"""A progress bar for a terminal; silent everywhere else."""

from __future__ import annotations

import math
import shutil
import sys
import time
from typing import Self, TextIO

_SECONDS_BETWEEN_DRAWINGS = 0.1
_BAR_WIDTH = 30


class Progress:
    """A bar on one line of a terminal, with the time left, to use in a ``with``; nothing where there is no terminal."""

    def __init__(self, total: int, label: str, *, in_bytes: bool = False, stream: TextIO | None = None) -> None:
        self.total, self.label, self.in_bytes = total, label, in_bytes
        self.done = 0
        self._stream = sys.stderr if stream is None else stream
        self._visible = self._stream is not None and self._stream.isatty()
        self._drawn_at = -math.inf

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._draw()
        return self

    def __exit__(self, *error: object) -> None:
        """Wipe the bar, also after an error, so that what follows starts on a clean line."""
        self._draw(wipe=True)

    def advance(self, steps: int = 1) -> None:
        """Count steps as done and, ten times a second at most, redraw the bar."""
        self.done += steps
        if time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def _draw(self, wipe: bool = False) -> None:
        if not self._visible:
            return
        # One less than the terminal has: a full last column makes some terminals scroll.
        columns = max(1, shutil.get_terminal_size().columns - 1)
        text = " " * columns + "\r" if wipe else self._line()[:columns].ljust(columns)
        try:
            self._stream.write(f"\r{text}")
            self._stream.flush()
        except OSError:  # the terminal has gone; the work goes on
            self._visible = False
        self._drawn_at = time.monotonic()

    def _line(self) -> str:
        share = min(1.0, self.done / self.total) if self.total else 1.0
        filled = round(share * _BAR_WIDTH)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        line = f"{self.label} [{bar}] {share:4.0%}"
        elapsed = time.monotonic() - self._started
        if self.in_bytes and self.done and elapsed > 0:
            line += f", {self.done / elapsed / 1e6:.0f} MB/s"
        if 0 < self.done < self.total:
            minutes, seconds = divmod(math.ceil(elapsed * (self.total - self.done) / self.done), 60)
            line += f", {minutes} min {seconds:02d} s left" if minutes else f", {seconds} s left"
        return line
