"""Logs for machines: what the library logs, with its fields, as a line of JSON each."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

import msgspec

__all__ = ["JsonFormatter"]

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class _Line(msgspec.Struct, omit_defaults=True):
    time: dt.datetime
    level: str
    event: str | None
    message: str
    fields: dict[str, Any]
    exception: str | None = None


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object on one line.

    ``time`` (UTC), ``level``, ``event`` (what happened, in a word; null in records that do not
    say), ``message`` (for people), ``fields`` (all else that was given as ``extra=``), and
    ``exception`` where there is one. Records of other libraries are formatted alike.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        event = fields.pop("event", None)
        exception = self.formatException(record.exc_info) if record.exc_info else None
        return msgspec.json.encode(
            _Line(
                dt.datetime.fromtimestamp(record.created, dt.UTC),
                record.levelname,
                None if event is None else str(event),
                record.getMessage(),
                fields,
                exception,
            ),
            enc_hook=str,
        ).decode()
