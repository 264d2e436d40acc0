"""Requests from the files they were logged in to the tasks that want them, by way of files.

Each share cuts its requests by the *places* of their rows, which are parts or groups of blocks,
and writes them down by *bundle*, which is the places of one task: a file a share, of which each
task maps its piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.views import readable
from bandana_kv.placement.distributed.kernels import gather_runs, runs_of
from bandana_kv.placement.distributed.runner import Sums
from bandana_kv.placement.distributed.shares import Share, keep, mapped

__all__ = ["Bundle", "forget", "read_bundle", "shuffle"]


class Bundle(NamedTuple):
    """What a task is told of its requests.

    Attributes
    ----------
    directory
        The work directory.
    name
        Of the shuffle.
    shares
        How many shares wrote for it.
    number
        Which of the bundles.
    """

    directory: str
    name: str
    shares: int
    number: int


def shuffle(
    shares: Sequence[Share],
    name: str,
    place_of_row: NDArray[np.int32],
    bundle_of_place: NDArray[np.int32],
) -> Sums:
    """Write the shares' requests down by bundle.

    Returns
    -------
    tuple of ndarray
        int64 (1,): bytes written; int64 (bundles,): rows of requests in each bundle.
    """
    bundles = int(bundle_of_place.max(initial=-1)) + 1
    written_bytes, rows = np.zeros(1, np.int64), np.zeros(bundles, np.int64)
    for share in shares:
        requests = share.requests()
        run_ends, ids, places = runs_of(requests.ends, requests.ids, readable(place_of_row))
        runs_end, lengths, rows_end, ids = gather_runs(
            run_ends, ids, bundle_of_place[places], bundles
        )
        index, content = _paths(share.directory, name, share.number)
        keep(content, np.concatenate([lengths, ids]))
        keep(index, np.stack([runs_end, rows_end]))
        written_bytes += 4 * (lengths.size + ids.size)
        rows += np.diff(rows_end)
    return written_bytes, rows


def read_bundle(bundle: Bundle) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the requests of a bundle, those of all shares: offsets and ids."""
    lengths, ids = [np.zeros(1, np.int32)], [np.zeros(0, np.int32)]
    for number in range(bundle.shares):
        index, content = _paths(bundle.directory, bundle.name, number)
        runs_end, rows_end = mapped(index, np.int64).reshape(2, -1)
        written = mapped(content, np.int32)
        first, last = runs_end[bundle.number : bundle.number + 2]
        lengths.append(written[first:last])
        first, last = rows_end[bundle.number : bundle.number + 2] + runs_end[-1]
        ids.append(written[first:last])
    return np.cumsum(np.concatenate(lengths), dtype=np.int64), np.concatenate(ids)


def forget(directory: str, name: str) -> None:
    """Remove the files of a shuffle."""
    for path in Path(directory).glob(f"{name}.*"):
        path.unlink(missing_ok=True)


def _paths(directory: str, name: str, share: int) -> tuple[Path, Path]:
    of_share = f"{name}.share-{share:05}"
    return Path(directory) / f"{of_share}.index", Path(directory) / f"{of_share}.runs"
