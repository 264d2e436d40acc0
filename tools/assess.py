"""Assess tables before moving them: logs, a device and prices in; a page and its numbers out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec

from bandana_kv.assess import (
    DEVICE_CLASSES,
    PUBLISHED,
    Assessment,
    Drive,
    Prices,
    Question,
    Retraining,
    Sizes,
    Table,
    assess,
    device_class,
)
from bandana_kv.assess.data import write_text
from bandana_kv.assess.page import check_extras, render
from bandana_kv.assess.performance import calibrate
from bandana_kv.care.inspection import Rating
from bandana_kv.codecs import codec_names
from bandana_kv.device import DeviceProfile
from bandana_kv.device.record import check_writable
from bandana_kv.errors import InputError
from bandana_kv.logs.options import LogOptions
from bandana_kv.tools.console import Bar, by_table, errors_named, out, shapes, size, table_options
from bandana_kv.tools.logs import keys_of_tables, log_options, read_logs, rows_by_keys
from bandana_kv.tools.place_files import InFiles, files_options
from bandana_kv.tools.sampled_logs import MOST_LOOKUPS, in_files_asked, sampled_tables

__all__ = ["main"]

# The fastest engine is what is assessed: with another, more machines are needed.
_ADAPTER = "blockfile"
# What --json without a file stands for.
_PRINTED = Path("-")
_FORMS = codec_names()[1:]


@click.command()
@table_options
@click.option("--ordered", is_flag=True, help="Logs are in order of time: learn on their start.")
@click.option(
    "--profile", "--device", "device", type=Path, help="Of the device, by `bandana-kv profile`."
)
@click.option(
    "--device-class",
    "kind",
    type=click.Choice(list(DEVICE_CLASSES)),
    help="Or: published figures of a kind of device. A profile wins.",
)
@click.option(
    "--dram-price", required=True, type=click.FloatRange(0, min_open=True), help="Of a GiB."
)
@click.option(
    "--nvm-price",
    required=True,
    type=click.FloatRange(0, min_open=True),
    help="Of a GiB, in the same unit.",
)
@click.option(
    "--requests-per-second",
    type=click.FloatRange(0, min_open=True),
    help="That are to be served; each looks up in every table.",
)
@click.option(
    "--latency-budget-ms",
    type=click.FloatRange(0, min_open=True),
    help="In which 99 of 100 requests are to be answered.",
)
@click.option(
    "--dram-budget", callback=size, metavar="SIZE", help="DRAM that is there for them anyway."
)
@click.option(
    "--cache-bytes", callback=size, metavar="SIZE", help="DRAM for caches.  [default: recommend it]"
)
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Tables and traffic are so many times what the logs show; all else given is of the whole.",
)
@click.option(
    "--machine-price",
    type=click.FloatRange(0),
    help="Of a machine like this one without its memory, in the unit of --dram-price.  "
    "[default: that of 8 GiB of DRAM a processor]",
)
@click.option(
    "--least-saving",
    type=click.FloatRange(0),
    help="That is worth the trouble, in that unit.  [default: a tenth of what DRAM alone costs]",
)
@click.option("--machine-dram", callback=size, metavar="SIZE", default="256GiB", show_default=True)
@click.option("--machine-nvm", callback=size, metavar="SIZE", default="4TiB", show_default=True)
@click.option(
    "--network-gbps",
    default=25.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Of a machine.",
)
@click.option(
    "--crossover",
    type=click.FloatRange(0, min_open=True),
    help="Missed rows a block, above which blocks beat a row a key on your cluster, by a bench.  "
    "[default: as measured on another]",
)
@click.option(
    "--retrains-per-day", default=1.0, show_default=True, type=click.FloatRange(0, 10_000)
)
@click.option(
    "--rewritten-share",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Of the blocks, that each retraining writes.",
)
@click.option(
    "--device-bytes",
    "--drive-capacity",
    "drive_capacity",
    callback=size,
    metavar="SIZE",
    help="The drive's capacity, as 1.92TiB or bytes.",
)
@click.option(
    "--rating-dwpd", type=click.FloatRange(0, min_open=True), help="Its drive writes per day."
)
@click.option(
    "--rating-tbw", type=click.FloatRange(0, min_open=True), help="Or: terabytes written, in all."
)
@click.option(
    "--warranty-years",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="For which --rating-dwpd is given.",
)
@click.option(
    "--threads",
    default=8,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="Requests served at a time.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of all samples."
)
@click.option(
    "--store-as",
    "forms",
    type=click.Choice(["all", *_FORMS]),
    multiple=True,
    help="Also say what rows would gain and lose, were they stored so.",
)
@click.option(
    "--sample",
    "samples",
    metavar="NAME=ROWS",
    multiple=True,
    callback=by_table,
    help="Some rows of a table, for what --store-as would lose.",
)
@click.option("--out", "page", type=Path, required=True, help="Where the page goes, as .html.")
@click.option(
    "--json",
    "numbers",
    type=Path,
    is_flag=False,
    flag_value=_PRINTED,
    metavar="[FILE]",
    help="Where its numbers go, as JSON; without FILE they are printed.",
)
@click.option(
    "--most-lookups",
    type=click.IntRange(1000),
    help="Assess by a sample of the blocks that has so many.  [default: "
    f"{MOST_LOOKUPS:,} for logs in files, which are given as directories or patterns]",
)
@files_options
@log_options
@errors_named
def main(
    logs: dict[str, str],
    tables: dict[str, str],
    key_files: dict[str, str],
    row_bytes: dict[str, int],
    rows: dict[str, int],
    ordered: bool,
    device: Path | None,
    kind: str | None,
    dram_price: float,
    nvm_price: float,
    requests_per_second: float | None,
    latency_budget_ms: float | None,
    dram_budget: int | None,
    cache_bytes: int | None,
    scale: float,
    machine_price: float | None,
    least_saving: float | None,
    machine_dram: int,
    machine_nvm: int,
    network_gbps: float,
    crossover: float | None,
    retrains_per_day: float,
    rewritten_share: float,
    drive_capacity: int | None,
    rating_dwpd: float | None,
    rating_tbw: float | None,
    warranty_years: float,
    threads: int,
    seed: int,
    forms: tuple[str, ...],
    samples: dict[str, str],
    page: Path,
    numbers: Path | None,
    most_lookups: int | None,
    in_files: InFiles,
    how: LogOptions,
) -> None:
    """Say whether tables should be served from NVM, what it gains and costs, and how sure that is.

    Learns from the earlier part of each log and judges on the later. Serving is measured on
    this machine for some seconds; the page stands alone, and prints.
    """
    _check_outputs(page, numbers)
    profile, name, source = _device(device, kind)
    drive = _drive(drive_capacity, rating_dwpd, rating_tbw, warranty_years, device, kind)
    share = 1.0
    if most_lookups is not None or in_files_asked(logs, in_files):
        if key_files:
            raise click.UsageError("--keys is for a log that is read as a whole, not for samples")
        asked, share = sampled_tables(
            *(logs, tables, row_bytes, rows),
            most_lookups=most_lookups or MOST_LOOKUPS,
            in_files=in_files,
            ordered=ordered,
            seed=seed,
            how=how,
        )
    else:
        keys = keys_of_tables(logs, tables, key_files)
        read = read_logs(logs, how, keys)
        sizes = shapes(read, tables, row_bytes, rows_by_keys(keys) | rows)
        asked = {table: Table(read[table], *sizes[table]) for table in read}
    question = Question(
        tables=asked,
        ordered=ordered,
        prices=Prices(dram_price, nvm_price, machine_price, least_saving),
        device=profile,
        device_name=name,
        device_source=source,
        requests_per_second=requests_per_second,
        latency_budget_us=None if latency_budget_ms is None else 1000 * latency_budget_ms,
        dram_budget_bytes=dram_budget,
        cache_bytes=cache_bytes,
        retraining=Retraining(retrains_per_day, rewritten_share),
        drive=drive,
        threads=threads,
        seed=seed,
        forms=_FORMS if "all" in forms else forms,
        samples=samples,
        scale=scale,
        sampled_share=share,
        sizes=Sizes(machine_dram, machine_nvm, 1e9 * network_gbps),
        crossover=crossover,
    )
    question.check()
    lookups = sum(each.log.lookups for each in asked.values())
    mean_row = sum(each.log.lookups * each.row_bytes for each in asked.values()) / lookups
    with Bar() as progress, tempfile.TemporaryDirectory(prefix="bandana-assess-") as scratch:
        costs = calibrate(
            max(1, round(mean_row)),
            threads=threads,
            adapter=_ADAPTER,
            directory=Path(scratch),
            seed=seed,
            progress=progress,
        )
        found = assess(question, costs, progress)
    _write(found, page, numbers)
    if numbers == _PRINTED:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return
    _print(found)
    for path in (page, numbers):
        if path is not None:
            out.print(f"wrote {path}")


def _check_outputs(page: Path, numbers: Path | None) -> None:
    """Refuse before minutes of work what would fail after them."""
    check_extras()
    for path in (page, numbers):
        if path is not None and path != _PRINTED:
            check_writable(path)
    if numbers is not None and numbers.absolute() == page.absolute():
        raise InputError(f"{page}: --out and --json name the same file")


def _device(path: Path | None, kind: str | None) -> tuple[DeviceProfile, str, str]:
    """Return what the device can do, its name, and who says so."""
    if path is not None:
        profile = DeviceProfile.read(path)
        name = profile.mount.device_model or f"the device of {profile.mount.mount_point}"
        how = f"measured {profile.created} with {profile.engine}"
        if profile.engine == PUBLISHED:
            how = "published figures"
        return profile, name, f"{how} ({path})"
    if kind is None:
        raise InputError(
            "which device? Give --profile, what `bandana-kv profile` measures, or "
            "--device-class, published figures"
        )
    published = device_class(kind)
    return published.profile(), published.title, published.source


def _drive(
    capacity: int | None,
    dwpd: float | None,
    tbw: float | None,
    warranty_years: float,
    device: Path | None,
    kind: str | None,
) -> Drive:
    if dwpd is not None and tbw is not None:
        raise click.UsageError("give --rating-dwpd or --rating-tbw, and not both")
    if dwpd is not None or tbw is not None:
        said = f"{dwpd:g} drive writes a day" if dwpd is not None else f"{tbw:g} TB written"
        return Drive(capacity, Rating(tbw, dwpd, warranty_years), f"{said}, as given")
    published = device_class(kind) if kind is not None and device is None else None
    if published is not None and published.dwpd is not None:
        rating = Rating(dwpd=published.dwpd, warranty_years=published.warranty_years)
        return Drive(capacity, rating, f"{published.dwpd:g} drive writes a day, as published")
    return Drive(capacity, None, "none given")


def _write(found: Assessment, page: Path, numbers: Path | None) -> None:
    write_text(page, render(found))
    if numbers is not None and numbers != _PRINTED:
        found.write(numbers)


def _print(found: Assessment) -> None:
    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False)

    say(f"{found.recommendation}: {found.verdict}")
    for reason in found.reasons:
        say(f"  - {reason}")
    for warning in found.warnings:
        say(f"  to be known: {warning}")
    say(f"  where: {found.advice.answer}")
    for line in found.advice.assumed:
        say(f"  reckoned with {line}")
    for name, table in found.tables.items():
        for form in table.forms:
            lost = f", RMS error {form.loss.rms_error:.3g}" if form.loss else ""
            say(f"  {name} as {form.codec}: {form.gain:.2f} times fewer reads{lost}")


if __name__ == "__main__":
    main()
