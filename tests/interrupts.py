"""Signal handlers that raise, at every place in a function where one may run."""

import contextlib
import sys


def interrupted(work, function, step, handler):
    """The result of ``work()``; ``handler`` is called before the instruction number ``step`` of ``function``.

    What it raises leaves ``function`` there. TimeoutError and KeyboardInterrupt may leave ``work``, too: None, then.
    """
    left = step

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code is not function.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == -1:
                sys.settrace(None)
                handler()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(TimeoutError, KeyboardInterrupt):
            return work()
    finally:
        sys.settrace(before)
