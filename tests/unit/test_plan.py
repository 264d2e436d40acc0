"""Plans: the admission for an amount of DRAM, and what a caller may ask for."""

from __future__ import annotations

import numpy as np
import pytest

from bandana_kv import heat
from bandana_kv.errors import InputError
from bandana_kv.plan import Admission, PlannedPoint, TablePlan, parse_admission


def test_the_nearest_amount_of_dram_decides() -> None:
    few, many = Admission("none"), Admission("threshold", 5)
    plan = TablePlan((PlannedPoint(0.01, few, 0.5), PlannedPoint(0.25, many, 0.2)))
    assert plan.admission_at(0.0) == few
    assert plan.admission_at(0.04) == few  # nearest by ratio: the middle is 0.05
    assert plan.admission_at(0.06) == many
    assert plan.admission_at(1.0) == many


def test_without_a_plan_no_neighbour_enters() -> None:
    assert TablePlan().admission_at(0.1) == Admission("none")
    assert Admission().least_heat == heat.NONE


def test_admissions_as_kernels_take_them() -> None:
    counts = np.array([0, 1, 5, 6, 127, 128, 1000])
    hot = heat.heat_of_counts(counts)
    for threshold in (0, 1, 5, 100):
        admission = parse_admission("threshold", threshold)
        assert ((hot >= admission.least_heat) == (counts > threshold)).all()
        assert str(admission) == f"threshold {threshold}"
    assert (hot >= parse_admission("all", None).least_heat).all()
    assert not (hot >= parse_admission("none", None).least_heat).any()


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ("some", None),
        ("all", 1),
        ("none", 0),
        ("threshold", None),
        ("threshold", -1),
        ("threshold", 1.5),
    ],
)
def test_contradictions_are_refused(rule: str, threshold: int | None) -> None:
    with pytest.raises(InputError):
        parse_admission(rule, threshold)
