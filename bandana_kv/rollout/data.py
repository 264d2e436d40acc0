"""What a roll-out is told, and what it tells: plain data."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from bandana_kv.errors import InputError

__all__ = [
    "NEW",
    "OLD",
    "SIDES",
    "STAGES",
    "Difference",
    "Limits",
    "Report",
    "Seen",
    "Shares",
    "Stage",
    "Transition",
    "checked_share",
    "checked_stage",
]

Stage = Literal["off", "shadow", "canary", "full"]
STAGES: tuple[Stage, ...] = get_args(Stage)

SIDES = ("old", "new")
OLD, NEW = 0, 1


class Shares(msgspec.Struct, frozen=True):
    """Which share of the requests is answered by both sides, to be compared.

    Attributes
    ----------
    shadow : float
        Of all requests.
    canary, full : float
        Of those that the new store answers.
    """

    shadow: float = 0.1
    canary: float = 0.1
    full: float = 0.001

    def __post_init__(self) -> None:
        """Check the shares.

        Raises
        ------
        InputError
            One is no share.
        """
        for stage in ("shadow", "canary", "full"):
            checked_share(f"the share compared in {stage}", getattr(self, stage))

    def of(self, stage: Stage) -> float:
        """Return the share of a stage."""
        return 0.0 if stage == "off" else float(getattr(self, stage))


class Limits(msgspec.Struct, frozen=True):
    """What the new store may do before the roll-out steps back.

    Failures and differences are judged as they come, latencies once in 256 lookups and with
    each comparison.

    Attributes
    ----------
    mismatch_share : float
        Share of the compared rows that may differ.
    error_share : float
        Share of the new store's lookups that may fail, or be late.
    latency_ratio : float or None
        How many times the old source's 99th percentile that of the new store may be.
    p99_us : float or None
        The new store's 99th percentile, in microseconds.
    window : int
        Judged are the last so many lookups of either side, and comparisons. The shares are of a
        full window: with an `error_share` of 0.001 the second error within 1,000 lookups is one
        too many, and so it is if they are the first two.
    least : int
        Lookups of a side before its latency is judged, and good comparisons before
        :meth:`Rollout.advance`.
    """

    mismatch_share: float = 0.0
    error_share: float = 0.001
    latency_ratio: float | None = None
    p99_us: float | None = None
    window: int = 1000
    least: int = 100

    def __post_init__(self) -> None:
        """Check the limits.

        Raises
        ------
        InputError
            Names the one that is none.
        """
        checked_share("mismatch_share", self.mismatch_share)
        checked_share("error_share", self.error_share)
        for name in ("latency_ratio", "p99_us"):
            limit = getattr(self, name)
            if limit is not None and not (_is_number(limit) and 0 < limit < float("inf")):
                raise InputError(f"{name} {limit!r} is not a number above 0")
        for name in ("window", "least"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InputError(f"{name} {count!r} is not a whole number from 1 up")
        if self.least > self.window:
            raise InputError(f"least ({self.least}) is more than the window ({self.window})")


class Difference(msgspec.Struct, frozen=True):
    """A row that the two sides gave differently. Which of them is right, nobody knows.

    Attributes
    ----------
    table : str
    id : int
    at : int
        The first of its numbers that differs. Numbers are compared as bytes: -0.0 is not 0.0,
        and one NaN may not be another.
    old, new : tuple
        The row's numbers from there on, 32 at most.
    old_bytes, new_bytes : str
        The first that differs, its bytes in hexadecimal digits.
    """

    table: str
    id: int
    at: int
    old: tuple[Any, ...]
    new: tuple[Any, ...]
    old_bytes: str
    new_bytes: str


class Seen(msgspec.Struct, frozen=True):
    """What the last lookups and comparisons of a stage show.

    Attributes
    ----------
    good_comparisons : int
        Without a difference, in this stage and since it last went beyond a limit.
    mismatch_share, error_share : float
        Of the compared rows, and of the new store's lookups.
    p50_us, p99_us : dict
        By side, ``"old"`` and ``"new"``; only of sides that were asked.
    breach : str or None
        The limit that is broken.
    """

    good_comparisons: int
    mismatch_share: float
    error_share: float
    p50_us: dict[str, float]
    p99_us: dict[str, float]
    breach: str | None


class Transition(msgspec.Struct, frozen=True):
    """A change of stage.

    Attributes
    ----------
    time : float
        Seconds since 1970.
    before, after : str
        The stages.
    fraction : float
        Of the requests that go to the new store while the stage is canary.
    reason : str
    automatic : bool
        Whether the roll-out stepped back by itself.
    seen : Seen
        Of the stage before.
    """

    time: float
    before: Stage
    after: Stage
    fraction: float
    reason: str
    automatic: bool
    seen: Seen


class Report(msgspec.Struct, frozen=True):
    """How a roll-out stands.

    Attributes
    ----------
    stage : str
    fraction : float
        Of the requests that go to the new store while the stage is canary.
    since : float
        When the stage began, in seconds since 1970.
    requests : dict
        By the side that answered, ``"old"`` and ``"new"``, since the roll-out began.
    errors : dict
        Failed lookups by side, those in the background included.
    rescued_requests : int
        That the old source answered because the new store failed.
    failed_requests : int
        That raised an error because no side could answer.
    compared_requests, compared_rows, mismatched_rows, skipped_comparisons : int
        Skipped is what there was no room for.
    window : Seen
        The last lookups and comparisons, of this stage.
    breaches : int
        How often a limit was broken.
    ready : bool
        Whether :meth:`Rollout.advance` would go on.
    why_not : str
        What is missing for that; else empty.
    differences : tuple of Difference
        The first few.
    history : tuple of Transition
        The last hundred.
    """

    stage: Stage
    fraction: float
    since: float
    requests: dict[str, int]
    errors: dict[str, int]
    rescued_requests: int
    failed_requests: int
    compared_requests: int
    compared_rows: int
    mismatched_rows: int
    skipped_comparisons: int
    window: Seen
    breaches: int
    ready: bool
    why_not: str
    differences: tuple[Difference, ...]
    history: tuple[Transition, ...]


def checked_share(name: str, share: object) -> float:
    """Return a share.

    Raises
    ------
    InputError
        It is not a number from 0 to 1.
    """
    if not _is_number(share) or not 0 <= share <= 1:  # type: ignore[operator]
        raise InputError(f"{name} {share!r} is not a number from 0 to 1")
    return float(share)  # type: ignore[arg-type]


def checked_stage(stage: object) -> Stage:
    """Return a stage.

    Raises
    ------
    InputError
        It is none.
    """
    if stage not in STAGES:
        raise InputError(f"stage {stage!r} is none of {', '.join(STAGES)}")
    return stage


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
