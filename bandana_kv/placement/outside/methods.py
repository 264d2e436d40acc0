"""Mt-KaHyPar and KaHyPar as placement methods.

``mtkahypar-large_k``, ``mtkahypar-default``
    Mt-KaHyPar (Gottesbüren, Heuer, Maas, Sanders, Schlag: "Scalable High-Quality Hypergraph
    Partitioning", ACM TALG 2024; MIT licence) with that preset. The extra ``partitioners``.
    **The same seed may give another placement with either of them** as soon as they use more
    than one thread.
``mtkahypar``
    The same library with the preset that suits: ``quality="fast"`` takes LARGE_K, ``"best"``
    DEFAULT, and ``"balanced"`` LARGE_K from 1,024 blocks on, as its authors advise, and
    DEFAULT below. ``deterministic=True`` takes DETERMINISTIC, which gives the same placement
    for the same seed whatever the number of threads. Which one ran is said in the progress
    stage and in the log ``bandana_kv``.
``kahypar``
    KaHyPar by recursive bisection (Schlag et al., "High-Quality Hypergraph Partitioning",
    ACM JEA 2022). Under the **GPL-3.0**, therefore the extra ``kahypar``, which ``all`` does
    not include; it runs in a process of its own. One thread, repeatable, slow.

All minimise the mean fanout (their connectivity metric, KM1) and take the options

``time_limit_s``
    Seconds after which the partitioner is ended with an error; 3600 by default, None for no
    limit.
``imbalance``
    By how much a block may exceed the mean while they work, 0.03 by default. Blocks are
    filled exactly afterwards, whatever it is.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.logs.requests import validated_log
from bandana_kv.placement.counts import lookups_of_id, positions_of_order
from bandana_kv.placement.outside.nets import Nets, build_nets
from bandana_kv.placement.outside.process import Partitioner, partition
from bandana_kv.placement.outside.repair import fill_blocks
from bandana_kv.placement.registry import Job, register

_log = logging.getLogger("bandana_kv")

_OPTIONS = ("time_limit_s", "imbalance")
_MANY_BLOCKS = 1024
_EXTRAS = {"mtkahypar": "partitioners", "kahypar": "kahypar"}

# Recursive bisection, for there are thousands of blocks; refined by plain two-way FM, for
# flows take hours then. Every key that is here must be: the library ends the process without.
_KAHYPAR = """\
mode=recursive
objective=km1
vcycles=0
c-type=heavy_lazy
c-rating-score=heavy_edge
c-rating-use-communities=false
c-rating-heavy_node_penalty=multiplicative
c-rating-acceptance-criterion=best
c-fixed-vertex-acceptance-criterion=free_vertex_only
i-mode=direct
i-technique=flat
i-algo=pool
i-runs=20
i-bp-algorithm=worst_fit
i-r-type=twoway_fm
i-r-fm-stop=simple
r-type=twoway_fm
r-fm-stop=simple
r-fm-stop-i=350
"""


@register("mtkahypar-large_k", options=_OPTIONS)
def _large_k(job: Job) -> NDArray[np.uint32]:
    return _place(job, "mtkahypar-large_k", "mtkahypar", "LARGE_K")


@register("mtkahypar-default", options=_OPTIONS)
def _default(job: Job) -> NDArray[np.uint32]:
    return _place(job, "mtkahypar-default", "mtkahypar", "DEFAULT")


@register("mtkahypar", options=(*_OPTIONS, "deterministic"))
def _mtkahypar(job: Job) -> NDArray[np.uint32]:
    preset = "DEFAULT"
    if job.options.get("deterministic", False):
        preset = "DETERMINISTIC"
    elif job.quality == "fast" or (
        job.quality == "balanced" and -(-job.rows // job.rows_per_block) >= _MANY_BLOCKS
    ):
        preset = "LARGE_K"
    _log.info("mtkahypar: preset %s", preset, extra={"event": "preset_chosen", "preset": preset})
    return _place(job, "mtkahypar", "mtkahypar", preset)


@register("kahypar", options=_OPTIONS)
def _kahypar(job: Job) -> NDArray[np.uint32]:
    return _place(job, "kahypar", "kahypar", _KAHYPAR)


def _place(job: Job, method: str, library: str, preset: str) -> NDArray[np.uint32]:
    """Place the rows of requests as the partitioner says, and the others after them."""
    _need(method, library)
    log = job.needed_log(method)
    time_limit_s, imbalance = _time_limit(job.options), _imbalance(job.options)
    nets = build_nets(*validated_log(log, job.rows), job.rows)
    blocks = -(-nets.vertices // job.rows_per_block)
    order = np.arange(nets.vertices, dtype=np.int32)
    # blocks of one row, or one block: there is nothing to choose
    if job.rows_per_block > 1 and blocks > 1:
        partitioner = Partitioner(
            library=library,
            preset=preset,
            name=library if library == "kahypar" else f"{library} {preset}",
            imbalance=max(imbalance, _least_imbalance(nets, blocks, job.rows_per_block)),
            seed=job.seed,
            threads=job.threads,
            time_limit_s=time_limit_s,
        )
        block_of_vertex = partition(nets, blocks, partitioner, job.progress)
        order = fill_blocks(nets, block_of_vertex, job.rows_per_block, job.progress)
    rest = np.argsort(-lookups_of_id(log, job.rows), kind="stable")
    is_placed = np.zeros(job.rows, np.bool_)
    is_placed[nets.id_of_vertex] = True
    return positions_of_order(np.concatenate([nets.id_of_vertex[order], rest[~is_placed[rest]]]))


def _need(method: str, library: str) -> None:
    if importlib.util.find_spec(library) is None:
        extra = _EXTRAS[library]
        raise MissingExtraError(
            f"placement method {method!r} needs {library}: pip install 'bandana-kv[{extra}]'"
        )


def _time_limit(options: Mapping[str, Any]) -> float | None:
    limit = options.get("time_limit_s", 3600.0)
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
        raise InputError(f"time_limit_s must be a number of seconds above 0 or None, not {limit!r}")
    return None if math.isinf(limit) else float(limit)


def _imbalance(options: Mapping[str, Any]) -> float:
    imbalance = options.get("imbalance", 0.03)
    if not isinstance(imbalance, (int, float)) or not 0 <= imbalance <= 1:
        raise InputError(f"imbalance must be a number from 0 to 1, not {imbalance!r}")
    return float(imbalance)


def _least_imbalance(nets: Nets, blocks: int, rows_per_block: int) -> float:
    """Return the imbalance that admits a full block: the partitioners count from the mean."""
    mean = -(-nets.vertices // blocks)
    return (rows_per_block + 0.5) / mean - 1
