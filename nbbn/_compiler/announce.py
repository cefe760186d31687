"""What a process is told of itself: records of the logger ``nbbn``, and one line about compiling.

No record is above INFO, so that Python prints none of them where nobody has set logging up.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

_said = False
_noted: set[str] = set()


def note(text: str, *values: object) -> None:
    """Make a record of level DEBUG: it is of one call."""
    logging = sys.modules.get("logging")  # nobody listens where it is not loaded
    if logging is not None:
        logging.getLogger("nbbn").debug(text, *values)


def note_once(text: str) -> None:
    """Make a record of level INFO, once a process: it is of all calls from now on."""
    logging = sys.modules.get("logging")
    if logging is not None and text not in _noted:
        _noted.add(text)
        logging.getLogger("nbbn").info(text)


def compiling(name: str, folder: Path | str) -> None:
    """Say that something is compiled, and kept in a folder if it is one: to the logger, and where somebody looks.

    That is a terminal or a notebook; ``NBBN_QUIET=1`` silences it there.
    """
    global _said
    note("compiling %s", name)
    if _said:
        return
    _said = True
    import logging  # not before it is needed: 5 ms of an import of nbbn

    kept = f"kept in {folder}" if isinstance(folder, Path) else "kept for this process alone"
    text = f"compiling for this machine, {kept}, a few seconds"
    logging.getLogger("nbbn").info(text)
    if _is_watched() and os.environ.get("NBBN_QUIET", "") in ("", "0"):
        with contextlib.suppress(OSError, ValueError):  # no longer there
            sys.stderr.write(f"\rnbbn: {text}\n")  # over what stands of a progress bar
            sys.stderr.flush()


def _is_watched() -> bool:
    if "ipykernel" in sys.modules:
        return True
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False
