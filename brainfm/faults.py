"""What a command says when it fails: what the user can mend in one message, a fault of ours with its place."""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

#: Set to 1 for the whole traceback of any error.
DEBUG = "BRAINFM_DEBUG"
PACKAGE = Path(__file__).parent
#: Errors by name that end a verb with status 1: some of its work failed, or a leak was found.
PARTLY = ("IngestError", "TokenizeError", "DecodeError", "LeakageError")
#: What the package raises where the user can mend something.
MENDABLE = (ValueError, KeyError, OSError, ImportError)


def guard(verb: Callable[[], object]) -> None:
    """Run a verb, whose lines are seen at once; end as `stop` says where it fails."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    try:
        verb()
    except (*MENDABLE, RuntimeError) as error:
        stop(error)
        raise
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def stop(error: Exception) -> None:
    """Print what happened and exit: 2 where the user can mend it, 1 where part of the work failed or it is a bug.

    Returns where the error is none of these, or the whole traceback is wanted; it should be raised on then.
    """
    if os.environ.get(DEBUG, "") not in ("", "0"):
        return
    if isinstance(error, RuntimeError) and type(error).__name__ in PARTLY:
        _end(str(error), 1)
    if not isinstance(error, MENDABLE):
        return
    if isinstance(error, OSError) and error.filename is not None:  # by the system: its text begins with a number
        _end(f"{error.filename}: {error.strerror}", 2)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    place = "" if isinstance(error, (OSError, ImportError)) else origin(error)
    if place:
        _end(
            f"{type(error).__name__}: {text}\n  raised in {place}, and not as a message to you: probably a bug. "
            f"{DEBUG}=1 before the command shows the whole traceback; please report it with that",
            1,
        )
    _end(text, 2)


def origin(error: BaseException) -> str:
    """Where an error arose that the package did not raise itself, as `file:line (called from ...)`; "" if it did.

    A function in C has no place of its own: its error then stands at a line of ours that is no `raise`. One that comes
    from another process is taken for ours, for its place stayed there.
    """
    last, ours = error.__traceback__, None
    if last is None or type(error.__cause__).__name__ == "_RemoteTraceback":
        return ""
    while True:
        ours = last if _is_ours(last) else ours
        if last.tb_next is None:
            break
        last = last.tb_next
    if last is ours and _raises(last):
        return ""
    called = f" (called from {_place(ours)})" if ours not in (None, last) else ""
    return _place(last) + called


def _is_ours(step: TracebackType) -> bool:
    return Path(step.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def _raises(step: TracebackType) -> bool:
    """Whether the frame stands at a `raise`."""
    code = step.tb_frame.f_code.co_code[step.tb_lasti]
    return dis.opname[code] in ("RAISE_VARARGS", "RERAISE")


def _place(step: TracebackType | None) -> str:
    if step is None:
        return "?"
    path = Path(step.tb_frame.f_code.co_filename)
    return f"{Path(*path.parts[-3:])}:{step.tb_lineno}"


def _end(text: str, status: int) -> None:
    print(f"brainfm: {text}", file=sys.stderr)
    sys.exit(status)
