"""Place rows by a log in files that no machine need hold: in this process, or on Ray."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
from rich.box import SIMPLE
from rich.table import Table

from bandana_kv.logs.options import LogOptions
from bandana_kv.placement import Placement, place
from bandana_kv.placement.distributed import (
    Figures,
    InProcess,
    LogInFiles,
    OnRay,
    Runner,
    fanout,
    open_log,
    place_log,
)
from bandana_kv.tools.console import Bar, end_as_interrupted, out, size
from bandana_kv.units import size_text

__all__ = ["InFiles", "files_options", "log_of", "place_files", "runner_of"]

F = TypeVar("F", bound=Callable[..., Any])


class InFiles(NamedTuple):
    """What the options say of a log in files."""

    ray: bool
    ray_address: str | None
    workers: int | None
    parts: int | None
    worker_memory_bytes: int
    work_dir: Path | None

    @property
    def asked_for(self) -> bool:
        """Whether one of them was given that means nothing for a log in memory."""
        return self.ray or self.parts is not None or self.work_dir is not None


def files_options(command: F) -> F:
    """Add the options about logs in files; the command gets them as `in_files`."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        said = InFiles(*(options.pop(name) for name in InFiles._fields))
        for option, value in (("--workers", said.workers), ("--ray-address", said.ray_address)):
            if value is not None and not said.ray:
                raise click.UsageError(f"{option} is about workers of Ray: give --ray, too")
        return command(*arguments, in_files=said, **options)

    added = (
        click.option("--ray", is_flag=True, help="Spread the work over workers of Ray."),
        click.option(
            "--ray-address",
            help="Of a cluster of Ray's.  [default: RAY_ADDRESS, else one is started here]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="Processes that share the log on Ray.  [default: one a processor]",
        ),
        click.option(
            "--parts",
            type=click.IntRange(1),
            help="Cut the rows into so many parts first, a power of two.  [default: so that each "
            "fits a worker]",
        ),
        click.option(
            "--worker-memory",
            "worker_memory_bytes",
            default="4GiB",
            show_default=True,
            callback=size,
            help="What each worker may take for its work, for a log in files.",
        ),
        click.option(
            "--work-dir",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Where a log in files is worked on, 16 bytes a lookup; all workers reach it.  "
            "[default: where temporary files go]",
        ),
    )
    described: Any = run
    for option in reversed(added):
        described = option(described)
    return described  # type: ignore[no-any-return]


@contextlib.contextmanager
def runner_of(in_files: InFiles) -> Iterator[Runner]:
    """Give who does the work, as the options say; workers of Ray end with it."""
    end_as_interrupted()  # or what was begun in the work directory stayed there
    if not in_files.ray:
        yield InProcess()
        return
    with OnRay(in_files.workers, in_files.ray_address) as runner:
        yield runner


def log_of(
    files: Sequence[str | Path],
    in_files: InFiles,
    runner: Runner,
    rows: int | None,
    train: float,
    seed: int,
    how: LogOptions,
) -> contextlib.AbstractContextManager[LogInFiles]:
    """Open a log as the options say; see :func:`bandana_kv.placement.distributed.open_log`."""
    return open_log(
        files,
        runner,
        rows,
        worker_memory_bytes=in_files.worker_memory_bytes,
        work_dir=in_files.work_dir,
        train=train,
        seed=seed,
        options=how,
    )


def place_files(
    files: Sequence[Path],
    in_files: InFiles,
    rows: int | None,
    rows_per_block: int,
    quality: str,
    train: float,
    seed: int,
    saved: Path,
    as_json: bool,
    how: LogOptions,
) -> None:
    """Learn a placement from part of the requests in files; print what the others make of it."""
    bar, figures = Bar(), Figures()
    with (
        runner_of(in_files) as runner,
        log_of(files, in_files, runner, rows, train, seed, how) as log,
    ):
        after = place_log(
            log,
            rows_per_block,
            runner=runner,
            parts=in_files.parts,
            quality=quality,
            seed=seed,
            progress=bar,
            figures=figures,
        )
        after.save(saved)
        moved = asdict(runner.moved)
        before = place(None, log.rows, rows_per_block, "shuffled", seed=seed)
        touched = {
            name: fanout(runner, log, placement)
            for name, placement in (("shuffled", before), ("shp", after))
        }
        summary = _summary(log, after, touched) | {
            "shares": len(log.shares),
            "parts": figures.parts,
            "workers": runner.workers,
            "on": "ray" if in_files.ray else "this process",
            "seconds": round(sum(figures.seconds.values()), 3),
            "seconds_of": figures.seconds,
            "moved": moved,
            "worker_memory_bytes": in_files.worker_memory_bytes,
            "worker_peak_bytes": runner.peak_bytes(),
        }
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    _print(summary)
    out.print(f"wrote {saved}")


def _summary(
    log: LogInFiles,
    placement: Placement,
    touched: dict[str, tuple[float | None, float | None]],
) -> dict[str, Any]:
    return {
        "requests": log.requests,
        "lookups": log.lookups,
        "rows": placement.rows,
        "blocks": placement.blocks,
        "rows_per_block": placement.rows_per_block,
        "copies": 0,
        "learned_from": placement.learned_from,
        "blocks_per_request": {
            name: {"learned": learned or 0.0, "held_out": held_out or 0.0}
            for name, (learned, held_out) in touched.items()
        },
    }


def _print(summary: dict[str, Any]) -> None:
    moved, peaks = summary["moved"], summary["worker_peak_bytes"]
    table = Table(
        box=SIMPLE,
        title_justify="left",
        title=f"{summary['requests']:,} requests, {summary['rows']:,} rows in "
        f"{summary['blocks']:,} blocks of {summary['rows_per_block']}; placed in "
        f"{summary['seconds']:.1f} s in {summary['parts']} parts by {summary['workers']} workers",
    )
    for column in ("placement", "blocks a request, learned from", "held out"):
        table.add_column(column, justify="left" if column == "placement" else "right")
    for name, found in summary["blocks_per_request"].items():
        table.add_row(name, f"{found['learned']:.3f}", f"{found['held_out']:.3f}")
    out.print(table)
    out.print(
        f"moved: {size_text(moved['down_bytes'])} to workers, {size_text(moved['up_bytes'])} from "
        f"them, {size_text(moved['files_bytes'])} by way of files; a worker had "
        f"{size_text(max(peaks))} at most, of which {size_text(summary['worker_memory_bytes'])} "
        "were for its work"
    )
