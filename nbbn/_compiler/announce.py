"""One line, once a process, that says why the first call takes seconds."""

from __future__ import annotations

import contextlib
import os
import sys

_said = False


def compiling(folder: str | None) -> None:
    """Say that something is compiled, and kept in ``folder``: to the logger ``nbbn``, and where somebody looks.

    That is a terminal or a notebook; ``NBBN_QUIET=1`` silences it there.
    """
    global _said
    if _said:
        return
    _said = True
    import logging  # not before it is needed: 5 ms of an import of nbbn

    kept = "kept for this process alone" if folder is None else f"kept in {folder}"
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
