"""Measure a device: a directory on it in; block size, queue depth, a table and a picture out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.table import Table

from bandana_kv.device import Cell, DeviceProfile, profile
from bandana_kv.device.profiler import ENGINES
from bandana_kv.device.record import check_writable, curve
from bandana_kv.device.sweep import DEPTHS
from bandana_kv.errors import MissingExtraError
from bandana_kv.logs.options import LogOptions
from bandana_kv.tools.console import Bar, end_as_interrupted, errors_named, json_option, out
from bandana_kv.tools.logs import NamedPath, log_options, named_path, read_named
from bandana_kv.tools.pictures import pyplot

__all__ = ["main"]

_STEADY = 0.2
_PAGE_BYTES = 4096


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="In under a minute, and 512 MiB instead of 4 GiB.")
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    callback=named_path,
    help="Of its rows: decides the block size.",
)
@click.option("--row-bytes", type=int, help="Bytes of a row; goes with --log.")
@click.option("--ordered", is_flag=True, help="The log is in order of time: learn on its start.")
@click.option("--p99-us", default=1000.0, show_default=True, help="What p99 of a read may be.")
@click.option("--engine", default="fio", show_default=True, type=click.Choice(ENGINES))
@click.option("--writes", is_flag=True, help="Measure writes too, for planning loads.")
@click.option(
    "--out",
    "saved",
    type=Path,
    default=Path("device.json"),
    show_default=True,
    help="Where the profile goes; the picture goes beside it, as .png.",
)
@json_option
@log_options
@errors_named
def main(
    directory: Path,
    quick: bool,
    log: NamedPath | None,
    row_bytes: int | None,
    ordered: bool,
    p99_us: float,
    engine: str,
    writes: bool,
    saved: Path,
    as_json: bool,
    how: LogOptions,
) -> None:
    """Measure random reads on the device under DIRECTORY, and say how to read from it.

    Works in a file of its own that has no name: nothing is left in DIRECTORY, however
    this command ends. Nothing is ever written to a raw device.
    """
    end_as_interrupted()
    picture = saved.with_suffix(".png")
    for path in (saved, picture):
        check_writable(path)
    read = read_named(log, how) if log is not None else None
    try:
        with Bar() as progress:
            found = profile(
                directory,
                quick=quick,
                engine=engine,
                p99_budget_us=p99_us,
                log=read,
                row_bytes=row_bytes,
                ordered=ordered,
                writes=writes,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo(f"error: stopped; no file is left in {directory}", err=True)
        sys.exit(130)
    found.write(saved)
    missing = _drawn(found, picture)
    if as_json:
        click.echo(saved.read_text(), nl=False)
        return
    _print(found)
    out.print(f"wrote {saved}")
    out.print(f"no picture: {missing}" if missing else f"wrote {picture}")


def _drawn(found: DeviceProfile, picture: Path) -> str | None:
    """Draw the picture, or return why there is none."""
    try:
        _draw(found, picture)
    except MissingExtraError as error:
        return str(error)
    return None


def _print(found: DeviceProfile) -> None:
    mount = found.mount
    device = mount.device_model or f"device {os.major(mount.device_id)}:{os.minor(mount.device_id)}"
    with_what = (
        f"fio {found.fio_version}, {found.engine}"
        if found.fio_version
        else "threads of Python, which reach less than fio on a fast device"
    )
    out.print(f"{mount.mount_point} ({mount.file_system}) on {device}; measured with {with_what}")
    for block_bytes in found.skipped_block_bytes:
        out.print(f"skipped {_size(block_bytes)}: this device has no direct reads of that size")
    out.print(_table_of_sizes(found))
    out.print(_table_of_depths(found))
    if found.writes is not None:
        out.print(
            f"writes: {found.writes.sequential_bytes_per_second / 1e6:,.0f} MB/s in order, "
            f"{found.writes.random_writes_per_second:,.0f} random writes of 4 KiB a second"
        )
    if not found.budget_met:
        out.print(
            f"No depth keeps p99 within {found.p99_budget_us:,.0f} µs; "
            f"depth {found.queue_depth} has the lowest."
        )
    if found.spread > _STEADY:
        out.print(
            f"The rate at the knee varied by {found.spread:.0%}: something else used the device "
            "or the processors. Measure again when it is quiet."
        )
    out.print(
        f"Use blocks of {_size(found.block_bytes)} and queue depth {found.queue_depth}"
        + (f", submitted by {found.jobs} threads." if found.jobs > 1 else ".")
    )
    if found.block_bytes < _PAGE_BYTES:
        out.print("Engines that read whole pages, as RocksDB and LMDB here, take 4 KiB instead.")


def _table_of_sizes(found: DeviceProfile) -> Table:
    table = Table(box=SIMPLE, title_justify="left", title="block sizes, each at its knee")
    columns = ["block", "depth", "reads/s", "MB/s", "p99 µs"]
    if found.row_bytes is not None:
        columns += ["rows", "blocks a request", "useful MB/s"]
    for column in (*columns, ""):
        table.add_column(column, justify="right")
    for size in found.sizes:
        cells = [
            _size(size.block_bytes),
            str(size.depth),
            f"{size.reads_per_second:,.0f}",
            f"{size.reads_per_second * size.block_bytes / 1e6:,.0f}",
            f"{size.p99_us:,.0f}" + ("" if size.budget_met else " over"),
        ]
        if found.row_bytes is not None:
            cells += [
                "" if number is None else text.format(number)
                for text, number in (
                    ("{}", size.rows_per_block),
                    ("{:.2f}", size.blocks_per_request),
                    ("{:,.0f}", _megabytes(size.useful_bytes_per_second)),
                )
            ]
        table.add_row(*cells, "<" if size.block_bytes == found.block_bytes else "")
    return table


def _megabytes(bytes_per_second: float | None) -> float | None:
    return None if bytes_per_second is None else bytes_per_second / 1e6


def _table_of_depths(found: DeviceProfile) -> Table:
    table = Table(
        box=SIMPLE,
        title_justify="left",
        title=f"blocks of {_size(found.block_bytes)}, p99 within {found.p99_budget_us:,.0f} µs",
    )
    for column in ("depth", "jobs", "reads/s", "mean µs", "p50 µs", "p99 µs", ""):
        table.add_column(column, justify="right")
    for cell in _curve(found, found.block_bytes):
        table.add_row(
            str(cell.depth),
            str(cell.jobs),
            f"{cell.reads_per_second:,.0f}",
            *(f"{us:,.0f}" for us in (cell.mean_us, cell.p50_us, cell.p99_us)),
            "< knee" if cell.depth == found.queue_depth else "",
        )
    return table


def _curve(found: DeviceProfile, block_bytes: int) -> list[Cell]:
    return curve(found.cells, block_bytes, found.jobs)


def _size(block_bytes: int) -> str:
    return f"{block_bytes} B" if block_bytes < 1024 else f"{block_bytes >> 10} KiB"


def _draw(found: DeviceProfile, path: Path) -> None:
    plt = pyplot()
    figure, (rates, latencies) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    shades = plt.get_cmap("Greys")(range(90, 200, 110 // max(1, len(found.sizes))))
    for size, shade in zip(found.sizes, shades, strict=False):
        chosen = size.block_bytes == found.block_bytes
        style = {"color": "#d1495b" if chosen else shade, "linewidth": 2.2 if chosen else 1}
        cells = _curve(found, size.block_bytes)
        depths = [cell.depth for cell in cells]
        label = _size(size.block_bytes)
        rates.plot(depths, [c.reads_per_second for c in cells], label=label, **style)
        latencies.plot(depths, [c.p99_us for c in cells], **style)
        if chosen:
            rates.plot(size.depth, size.reads_per_second, "o", color="#d1495b", markersize=8)
            latencies.plot(size.depth, size.p99_us, "o", color="#d1495b", markersize=8)
    latencies.axhline(found.p99_budget_us, color="black", linewidth=0.8, linestyle=":")
    for axes, title in ((rates, "reads a second"), (latencies, "p99, µs (dotted: budget)")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
        axes.set_xlabel("reads in flight (dot: the knee)")
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right center")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
