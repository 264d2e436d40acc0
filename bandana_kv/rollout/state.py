"""The stage of a roll-out in a file, so that a process that starts again does not jump ahead."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bandana_kv.errors import FormatError, InputError, RolloutError
from bandana_kv.rollout.data import Stage, checked_share
from bandana_kv.system.durable import write_durably
from bandana_kv.system.permission import check_permission

__all__ = ["State", "read_state", "write_state"]

_FORMAT = 1


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written down.

    Attributes
    ----------
    format : int
    stage : str
    fraction : float
        Of the requests that go to the new store while the stage is canary.
    time : float
        Seconds since 1970.
    reason : str
        Why that stage was gone to.
    """

    format: int
    stage: Stage
    fraction: float
    time: float
    reason: str


def read_state(path: Path) -> State | None:
    """Return what is written at `path`; None: nothing yet.

    Raises
    ------
    InputError
        There is no directory for it, or it cannot be read.
    FormatError
        It is damaged, or no such file.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no directory {path.parent} to keep a stage in")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        check_permission(error, path)
        raise InputError(f"{path}: the stage cannot be read ({error})") from error
    way_out = "remove it to begin with the stage that is asked for"
    try:
        state = msgspec.json.decode(content, type=State)
        checked_share("fraction", state.fraction)
    except (msgspec.MsgspecError, InputError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is no stage of a roll-out ({error}); {way_out}") from error
    if state.format != _FORMAT:
        raise FormatError(
            f"{path} is of format {state.format}, this release reads {_FORMAT}; {way_out}"
        )
    return state


def write_state(path: Path, stage: Stage, fraction: float, time: float, reason: str) -> None:
    """Write a stage down, durably.

    Raises
    ------
    RolloutError
        That failed; says what is there instead.
    """
    state = State(_FORMAT, stage, fraction, time, reason)
    try:
        with _alone(path.parent):
            write_durably(path, msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    except OSError as error:
        raise RolloutError(
            f"{path}: the stage is {stage!r} now, but that could not be written down ({error}); "
            "a process that starts again may begin with the stage before"
        ) from error


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other processes with the same file from writing it at the same time."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
