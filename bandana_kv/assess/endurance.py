"""How fast retraining wears the drive."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bandana_kv.assess.data import Endurance, SmallestDrive
from bandana_kv.care.inspection import Rating

__all__ = ["Drive", "Retraining", "endurance_of"]

_DAYS_A_YEAR = 365.25
# As drives are sold: read-mostly NAND, mixed NAND, 3D XPoint.
_USUAL_DWPD = (0.3, 1.0, 3.0, 30.0)


@dataclass(frozen=True)
class Retraining:
    """How often tables are loaded anew, and the share of their blocks that is then written."""

    times_per_day: float
    rewritten_share: float


@dataclass(frozen=True)
class Drive:
    """What is known of the drive: capacity, what may be written to it, and who says so."""

    capacity_bytes: int | None
    rating: Rating | None
    source: str


def endurance_of(nvm_bytes: int, retraining: Retraining, drive: Drive) -> Endurance:
    """Return how fast a drive wears that tables of `nvm_bytes` are loaded to.

    Raises
    ------
    InputError
        The rating is none.

    Notes
    -----
    What an engine and the drive write on top of blocks is not in it: a bulk load of block files
    or LMDB adds little, RocksDB and a full drive more; tools/inspect_store.py shows what
    your store really writes.
    """
    written = retraining.times_per_day * retraining.rewritten_share * nvm_bytes
    capacity, rating = drive.capacity_bytes, drive.rating
    rated = None
    if rating is not None and (capacity is not None or rating.tbw is not None):
        rated = rating.total_bytes(capacity or 1)
    years = most = None
    if rated is not None and rating is not None:
        years = rated / written / _DAYS_A_YEAR if written else None
        per_load = retraining.rewritten_share * nvm_bytes
        if per_load:
            most = rated / (rating.warranty_years * _DAYS_A_YEAR) / per_load
    return Endurance(
        retrains_per_day=retraining.times_per_day,
        rewritten_share=retraining.rewritten_share,
        written_bytes_per_day=round(written),
        drive_bytes=capacity,
        drive_writes_per_day=written / capacity if capacity else None,
        rated_bytes=rated,
        years=years,
        most_retrains_per_day=most,
        rating=drive.source,
        smallest_drives=tuple(
            SmallestDrive(dwpd, math.ceil(written / dwpd)) for dwpd in _USUAL_DWPD
        ),
    )
