"""Where rows and their second copies lie."""

from __future__ import annotations

import numpy as np
import pytest

from bandana_kv.kernels.layout import first_copy, position_of_place


@pytest.mark.parametrize("rows", [64, 65, 70, 95, 96])
def test_every_place_has_its_row_or_is_empty(rows: int) -> None:
    copies = np.array([5, 9, 60], np.uint32)
    behind = first_copy(rows, 32)
    expected = [*range(rows), *[-1] * (behind - rows), 5, 9, 60, *[-1] * 29]
    assert behind % 32 == 0
    assert [position_of_place(place, rows, copies, behind) for place in range(behind + 32)] == (
        expected
    )
