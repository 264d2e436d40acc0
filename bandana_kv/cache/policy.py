"""What a table's cache evicts and admits: plain data that plans hold and kernels obey."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from bandana_kv.cache import heat
from bandana_kv.errors import InputError

__all__ = ["WHOLE", "Admission", "Policy", "asked_policy", "parse_admission"]

Eviction = Literal["lru", "clock", "s3-fifo", "sieve", "tinylfu"]
Rule = Literal["none", "all", "lower", "shadow", "shadow-lower", "threshold", "online"]


class Admission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which rows that came along with a read enter the cache.

    Attributes
    ----------
    rule
        ``none``; ``all``; ``lower``: all, in the middle of the queue, so that they leave
        sooner; ``shadow``: those asked for lately, as a shadow cache of positions says;
        ``shadow-lower``: those as asked rows do, the others in the middle; ``threshold``: those
        looked up more than `threshold` times in the training log; ``online``: those that
        are hotter, by live heat, than the row that would leave for them.
    threshold
        Set if and only if the rule is ``threshold``.
    """

    rule: Rule = "none"
    threshold: int | None = None

    @property
    def least_heat(self) -> int:
        """Least training heat of an admitted neighbour, as the kernels take it."""
        return heat.NONE if self.threshold is None else heat.least_heat(self.threshold)

    def __str__(self) -> str:
        return self.rule if self.threshold is None else f"{self.rule} {self.threshold}"


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a table's cache is run.

    Attributes
    ----------
    eviction
        ``lru``, ``clock``, ``s3-fifo``, ``sieve``, or ``tinylfu``: the coldest of a few, by live
        heat; there a row that was asked for enters only if it is hotter than that, too.
    admission
        Which neighbours enter.
    half_life
        Lookups after which live heat has halved, in multiples of the rows that DRAM holds.
    seed_weight
        How much live heat believes the training log at first: 1, as if it had just ended;
        0, not at all. With the half-life it fades either way.
    """

    eviction: Eviction = "lru"
    admission: Admission = Admission()
    half_life: float = 20.0
    seed_weight: float = 1.0

    @property
    def watches_heat(self) -> bool:
        """Whether live heat is kept, at a byte a row."""
        return self.eviction == "tinylfu" or self.admission.rule == "online"

    def __str__(self) -> str:
        heat_text = f", half-life {self.half_life:g}" if self.watches_heat else ""
        if self.watches_heat and self.seed_weight:
            heat_text += f", seeded {self.seed_weight:g}"
        return f"{self.eviction} + {self.admission}{heat_text}"


WHOLE = Policy("clock", Admission("all"))
"""For a table that DRAM holds whole: nothing leaves, so that a hit costs least where nobody notes
what is hot, and each block is read once."""


def parse_admission(rule: str, threshold: int | None) -> Admission:
    """Return the admission a caller asked for.

    Raises
    ------
    InputError
        The rule is unknown, or the threshold does not go with it.
    """
    if rule not in get_args(Rule):
        raise InputError(
            f"admission {rule!r} is unknown; choose one of {', '.join(get_args(Rule))}"
        )
    if (rule == "threshold") != (threshold is not None):
        raise InputError(
            "a threshold goes with admission='threshold' and only with it; "
            f"got admission={rule!r}, threshold={threshold!r}"
        )
    if threshold is not None and (not isinstance(threshold, int) or threshold < 0):
        raise InputError(f"threshold {threshold!r} is not a whole number from 0 up")
    return Admission(rule, threshold)  # type: ignore[arg-type]  # checked above


def asked_policy(
    policy: Policy | None, admission: str | None, threshold: int | None
) -> Policy | None:
    """Return the policy that a caller asked for, in full or in short; None for neither.

    Raises
    ------
    InputError
        Both were given, or they are no policy.
    """
    if policy is not None:
        if admission is not None or threshold is not None:
            raise InputError("give a policy, or an admission in short, and not both")
        if not isinstance(policy, Policy):
            raise InputError(f"policy {policy!r} is not a bandana_kv.policy.Policy")
        if policy.eviction not in get_args(Eviction):
            raise InputError(
                f"eviction {policy.eviction!r} is unknown; choose one of "
                f"{', '.join(get_args(Eviction))}"
            )
        if not (policy.half_life > 0 and policy.seed_weight >= 0):
            raise InputError(f"half_life must be above 0 and seed_weight not below: {policy}")
        parse_admission(policy.admission.rule, policy.admission.threshold)
        return policy
    if admission is None and threshold is not None:
        raise InputError("a threshold goes with admission='threshold'; no admission was named")
    return None if admission is None else Policy("lru", parse_admission(admission, threshold))
