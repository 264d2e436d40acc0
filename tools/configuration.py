"""A file that says what options say: tables, logs, engine and DRAM, once for all sub-commands.

Keys are the names of options; one that a sub-command has no option for is for the others.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import click
import msgspec

from bandana_kv.tools.console import by_table

__all__ = ["config_option"]


class _Key(NamedTuple):
    """What stands behind a key, or behind each name where it is a table of names."""

    type: Any
    said: str
    # What the option is called, if not as the key.
    option: str | None = None
    is_path: bool = False


_PATHS = dict[str, str]
_KEYS = {
    "directory": _Key(str, "a path", "store", is_path=True),
    "tables": _Key(_PATHS, "a path", "--table", is_path=True),
    "logs": _Key(_PATHS, "a path", "--log", is_path=True),
    "adapter": _Key(str, "a text"),
    "placement": _Key(str, "a text"),
    "plan": _Key(str, "a path", is_path=True),
    "profile": _Key(str, "a path", is_path=True),
    "replicate": _Key(float, "a number"),
    "admission": _Key(str, "a text"),
    "threshold": _Key(int, "a whole number"),
    "seed": _Key(int, "a whole number"),
    "keep": _Key(int, "a whole number"),
    "cache-bytes": _Key(int | str, "a size, as in '64MiB'"),
    "rows-per-block": _Key(int, "a whole number"),
    "row-bytes": _Key(int | dict[str, int], "a whole number"),
    "rows": _Key(dict[str, int], "a whole number"),
    "ordered": _Key(bool, "true or false"),
    "log-format": _Key(str, "a text"),
    "log-table": _Key(str, "a text"),
    "columns": _Key(dict[str, str], "a text", "--column"),
    "separator": _Key(str, "a text"),
    "header": _Key(bool, "true or false"),
    "quoting": _Key(bool, "true or false"),
    "bad-rows": _Key(str, "a text"),
}


class ConfigurationError(click.ClickException):
    """A configuration file is not what it should be: as bad usage, it ends with status 2."""

    exit_code = 2


def config_option() -> click.Option:
    """Return the option that names the file; other options go before what it says."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_configure,
        help="A .toml file of options; those on the command line go before it.",
    )


def _configure(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    said = _read(path)
    found: dict[str, Any] = dict(context.default_map or {})
    for parameter in context.command.params:
        for name in (*parameter.opts, *_kept_by(context, parameter)):
            key = _key_of(name)
            if key in said and _fits(parameter, said[key]):
                found[parameter.name or ""] = _as_options(parameter, said[key])
    context.default_map = found


def _kept_by(context: click.Context, parameter: click.Parameter) -> tuple[str, ...]:
    """Return the key under which a command keeps what it writes, and others read."""
    kept = {"plan": "--plan", "profile": "--profile"}.get(context.info_name or "")
    return (kept,) if kept is not None and "--out" in parameter.opts else ()


def _key_of(name: str) -> str:
    for key, each in _KEYS.items():
        if name == each.option:
            return key
    return name.removeprefix("--")


def _fits(parameter: click.Parameter, value: object) -> bool:
    """Return whether an option is by table if the value is, or takes one for all."""
    if isinstance(value, dict):
        return getattr(parameter, "multiple", False)
    return parameter.callback is not by_table


def _as_options(parameter: click.Parameter, value: object) -> object:
    if isinstance(value, dict):
        return [f"{name}={each}" for name, each in value.items()]
    return [str(value)] if getattr(parameter, "multiple", False) else value


def _read(path: Path) -> dict[str, Any]:
    """Return what a file says, with paths as they are from here.

    Raises
    ------
    ConfigurationError
        Names the file, the line and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: is no TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(f"{path}: cannot be read ({why})") from error
    return {key: _checked(path, text, key, value) for key, value in said.items()}


def _checked(path: Path, text: str, key: str, value: object) -> Any:
    if key not in _KEYS:
        close = difflib.get_close_matches(key, _KEYS, 1)
        meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_KEYS)}"
        raise _wrong(path, text, (key,), f"there is no key {key!r}; {meant}")
    known = _KEYS[key]
    for name, each in value.items() if isinstance(value, dict) else ():
        _check_type(path, text, (key, name), {name: each}, known)
    _check_type(path, text, (key,), value, known)
    if not known.is_path:
        return value
    return _with_strings(value, lambda found: str(path.parent / found))


def _check_type(path: Path, text: str, where: tuple[str, ...], value: object, known: _Key) -> None:
    try:
        msgspec.convert(value, known.type)
    except msgspec.ValidationError as error:
        is_table = get_origin(known.type) is dict and len(where) == 1
        wanted = f"a table of names, each with {known.said}" if is_table else known.said
        raise _wrong(path, text, where, f"{'.'.join(where)!r} is to be {wanted}") from error


def _with_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {name: change(each) for name, each in value.items()}
    return change(value)


def _wrong(path: Path, text: str, where: tuple[str, ...], what: str) -> ConfigurationError:
    return ConfigurationError(f"{path}, line {_line_of(text, where)}: {what}")


def _line_of(text: str, where: tuple[str, ...]) -> int:
    """Return the line of a key, from 1: TOML's reader in the standard library does not say it."""
    section: tuple[str, ...] = ()
    nearest = 1
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        left = re.match(r"\s*([\w.\"' -]+?)\s*=", line)
        if header is not None:
            section = found = _parts(header[1])
        elif left is not None:
            found = (*section, *_parts(left[1]))
        else:
            continue
        if found[: len(where)] == where:
            return number
        if found == where[: len(found)]:
            nearest = number  # the names stand within braces
    return nearest


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
