"""Tables to assess by samples of their logs, which are in files that nobody holds as a whole."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Mapping
from pathlib import Path

from bandana_kv.assess import TRAIN, Block, Table
from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.options import LogOptions
from bandana_kv.logs.recording import is_recording
from bandana_kv.placement.distributed import LogInFiles, Runner, sample, whole
from bandana_kv.tools.console import Bar, check_named, shape_of
from bandana_kv.tools.place_files import InFiles, log_of, runner_of

__all__ = ["MOST_LOOKUPS", "in_files_asked", "sampled_tables"]

MOST_LOOKUPS = 10_000_000


def in_files_asked(logs: Mapping[str, str], in_files: InFiles) -> bool:
    """Return whether logs are in files: by an option, a pattern, or a directory of files.

    One of Parquet files alone is not: a request may go on in the next of them.
    """
    return in_files.asked_for or any(
        _is_pattern(path) or _is_directory_of_logs(Path(path)) for path in logs.values()
    )


def _is_directory_of_logs(path: Path) -> bool:
    if not path.is_dir() or is_recording(path):
        return False
    return not any(each.suffix == ".parquet" for each in path.iterdir())


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not Path(path).exists()


def _files(path: str) -> list[str]:
    if not _is_pattern(path):
        return [path]
    root = Path(path).anchor
    found = sorted(map(str, Path(root).glob(path.removeprefix(root))))
    if not found:
        raise InputError(f"{path}: no file is called so")
    return found


def sampled_tables(
    logs: Mapping[str, str],
    tables: Mapping[str, str],
    row_bytes: Mapping[str, int],
    rows: Mapping[str, int],
    *,
    most_lookups: int,
    in_files: InFiles,
    ordered: bool,
    seed: int,
    how: LogOptions,
) -> tuple[dict[str, Table], float]:
    """Return tables with samples of their logs, of `most_lookups` in all, and of how many rows.

    Raises
    ------
    BandanaError
        As :func:`bandana_kv.placement.distributed.open_log`; or an option names another table.
    """
    check_named(logs, tables, row_bytes, rows)
    shapes = {name: shape_of(name, tables, row_bytes, rows) for name in logs}
    with runner_of(in_files) as runner, contextlib.ExitStack() as stack:
        opened = {}
        for name, path in logs.items():
            known, _ = shapes[name]
            at = log_of(_files(path), in_files, runner, known, TRAIN, seed, how)
            opened[name] = stack.enter_context(at)
        share = min(1.0, most_lookups / sum(each.lookups for each in opened.values()))
        found = {}
        for name, log in opened.items():
            _, size = shapes[name]
            if share == 1.0:
                found[name] = Table(_named(whole(log), logs[name]), log.rows, size)
            else:
                found[name] = _sampled(
                    *(runner, log, logs[name], name, size, share),
                    *(ordered, in_files.parts, seed),
                )
        kept = sum(each.rows for each in found.values())
        return found, kept / sum(each.rows for each in opened.values())


def _sampled(
    runner: Runner,
    log: LogInFiles,
    path: str,
    name: str,
    row_bytes: int,
    share: float,
    ordered: bool,
    parts: int | None,
    seed: int,
) -> Table:
    drawn = sample(
        runner,
        log,
        Block.of(name, row_bytes).rows,
        share,
        ordered=ordered,
        parts=parts,
        seed=seed,
        progress=Bar(),
    )
    return Table(_named(drawn.log, path), drawn.rows, row_bytes, drawn)


def _named(log: AccessLog, path: str) -> AccessLog:
    return AccessLog(log.offsets, log.ids, source=path)
