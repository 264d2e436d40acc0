"""Policies: what may be asked for, in full or in short, and how they are named."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from bandana_kv.cache import heat
from bandana_kv.cache.policy import Admission, Eviction, Policy, Rule, asked_policy, parse_admission
from bandana_kv.errors import InputError


def test_by_default_lru_and_no_neighbour() -> None:
    assert Policy() == Policy("lru", Admission("none"))
    assert Admission().least_heat == heat.NONE


def test_thresholds_as_kernels_take_them() -> None:
    counts = np.array([0, 1, 5, 6, 127, 128, 1000])
    hot = heat.heat_of_counts(counts)
    for threshold in (0, 1, 5, 100):
        admission = parse_admission("threshold", threshold)
        assert ((hot >= admission.least_heat) == (counts > threshold)).all()
        assert str(admission) == f"threshold {threshold}"


def test_every_rule_without_a_threshold_is_parsed() -> None:
    for rule in get_args(Rule):
        if rule != "threshold":
            assert parse_admission(rule, None) == Admission(rule)
            assert str(Admission(rule)) == rule


@pytest.mark.parametrize(
    ("rule", "threshold", "said"),
    [
        ("some", None, "'some' is unknown; choose one of none, all, lower, shadow, shadow-lower"),
        ("all", 1, "a threshold goes with admission='threshold' and only with it"),
        ("none", 0, "a threshold goes with"),
        ("online", 3, "a threshold goes with"),
        ("threshold", None, "a threshold goes with"),
        ("threshold", -1, "threshold -1 is not a whole number"),
        ("threshold", 1.5, "threshold 1.5 is not a whole number"),
    ],
)
def test_an_admission_that_contradicts_itself_is_refused(
    rule: str, threshold: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        parse_admission(rule, threshold)
    with pytest.raises(InputError, match=said):
        asked_policy(None, rule, threshold)
    with pytest.raises(InputError, match=said):
        asked_policy(Policy("lru", Admission(rule, threshold)), None, None)


def test_a_policy_in_full_or_in_short_or_none() -> None:
    assert asked_policy(None, None, None) is None
    full = Policy("tinylfu", Admission("online"), 5.0, 0.0)
    assert asked_policy(full, None, None) is full
    assert asked_policy(None, "shadow", None) == Policy("lru", Admission("shadow"))
    assert asked_policy(None, "threshold", 7) == Policy("lru", Admission("threshold", 7))


@pytest.mark.parametrize("eviction", get_args(Eviction))
@pytest.mark.parametrize("rule", get_args(Rule))
def test_every_combination_may_be_asked_for(eviction: Any, rule: Any) -> None:
    policy = Policy(eviction, Admission(rule, 2 if rule == "threshold" else None))
    assert asked_policy(policy, None, None) == policy
    assert policy.watches_heat == (eviction == "tinylfu" or rule == "online")


@pytest.mark.parametrize(
    ("policy", "short", "said"),
    [
        (Policy(), ("all", None), "and not both"),
        (Policy(), (None, 3), "and not both"),
        ("lru", (None, None), "'lru' is not a bandana_kv.policy.Policy"),
        (Admission("all"), (None, None), "is not a bandana_kv.policy.Policy"),
        (Policy("fifo"), (None, None), "eviction 'fifo' is unknown; choose one of lru, clock"),
        (Policy(half_life=0.0), (None, None), "half_life must be above 0"),
        (Policy(half_life=-1.0), (None, None), "half_life must be above 0"),
        (Policy(half_life=float("nan")), (None, None), "half_life must be above 0"),
        (Policy(seed_weight=-0.5), (None, None), "seed_weight"),
        (None, (None, 3), "no admission was named"),
    ],
)
def test_what_is_no_policy_is_refused(
    policy: Any, short: tuple[str | None, int | None], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        asked_policy(policy, *short)


def test_a_policy_says_what_matters() -> None:
    assert str(Policy()) == "lru + none"
    assert str(Policy("s3-fifo", Admission("threshold", 5))) == "s3-fifo + threshold 5"
    assert str(Policy("tinylfu")) == "tinylfu + none, half-life 20, seeded 1"
    unseeded = Policy("sieve", Admission("online"), 5.0, 0.0)
    assert str(unseeded) == "sieve + online, half-life 5"
