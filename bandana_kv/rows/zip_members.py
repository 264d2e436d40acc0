"""Where the members of a zip file lie in it."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bandana_kv.errors import BandanaError, InputError

__all__ = ["check_claims", "first_byte_of", "zip_named"]

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, of the extra field
_LOCAL_MAGIC = b"PK\x03\x04"
_MOST_DEFLATED = 1032  # the most bytes that deflate makes of one
_SLACK_BYTES = 1 << 20


@contextlib.contextmanager
def zip_named(path: Path, kind: str) -> Iterator[None]:
    """Turn what a damaged zip file ends in into one error that names it."""
    try:
        yield
    except BandanaError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError) as error:
        raise InputError(f"{path}: not a complete {kind} file ({error}); copy it again") from error
    except (ValueError, RuntimeError, NotImplementedError, UnicodeError) as error:
        raise InputError(f"{path}: not a readable {kind} file ({error})") from error


def first_byte_of(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member begin; raises as zipfile does."""
    file.seek(member.header_offset)
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != _LOCAL_MAGIC:
        raise zipfile.BadZipFile(f"no header of {member.filename}")
    return member.header_offset + _LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)


def check_claims(path: Path, member: zipfile.ZipInfo, size: int) -> None:
    """Refuse a member that says it is longer than a file of `size` bytes can hold, or odd.

    Raises
    ------
    InputError
        Names it.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{path}: {member.filename} is packed in a way that numpy does not use")
    if member.flag_bits & 1:
        raise InputError(f"{path}: {member.filename} is encrypted; write it without a password")
    most = member.compress_size
    if member.compress_type == zipfile.ZIP_DEFLATED:
        most = _MOST_DEFLATED * most + _SLACK_BYTES
    if member.compress_size > size or member.file_size > most:
        raise InputError(f"{path}: {member.filename} claims more bytes than the file can hold")
