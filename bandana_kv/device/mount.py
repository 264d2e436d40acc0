"""Which mount a directory lies on, and the device under it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import uuid
from pathlib import Path
from typing import Self

import msgspec

from bandana_kv.errors import InputError

__all__ = ["IN_MEMORY", "Mount"]

IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
"""File systems that have no device under them."""

# _IOR(0x15, 0, struct fsuuid2): one byte of length, then 16 of uuid; Linux 6.9 and later
_GET_UUID = 0x80111500


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Identity of a mounted file system.

    Attributes
    ----------
    device_id : int
        ``st_dev`` of what lies on it.
    mount_point : str
    file_system : str
        Its type, for example ``ext4``.
    uuid : str or None
        Of the file system, where the system tells.
    device_model : str or None
        As the device calls itself; virtual disks have no name.
    """

    device_id: int
    mount_point: str
    file_system: str
    uuid: str | None
    device_model: str | None

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Return the mount that a directory lies on.

        Raises
        ------
        InputError
            The directory cannot be opened.
        """
        try:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise InputError(f"{directory}: cannot be opened ({error.strerror})") from error
        try:
            device_id = os.fstat(handle).st_dev
            mount_point, file_system, source = _mount_of(handle)
            return cls(
                device_id=device_id,
                mount_point=mount_point,
                file_system=file_system,
                uuid=_uuid_from_kernel(handle) or _uuid_from_links(device_id),
                device_model=_model(device_id) or _model(_device_number(source)),
            )
        finally:
            os.close(handle)

    def same_as(self, other: Mount) -> bool:
        """Return whether both are one file system: by uuid where both have one."""
        if self.uuid and other.uuid:
            return self.uuid == other.uuid
        return (self.device_id, self.mount_point, self.file_system) == (
            other.device_id,
            other.mount_point,
            other.file_system,
        )


def _mount_of(handle: int) -> tuple[str, str, str]:
    """Return mount point, type and source of the mount on which an open file lies."""
    info = Path(f"/proc/self/fdinfo/{handle}").read_text()
    number = info.partition("mnt_id:")[2].split()[0]
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if fields[0] == number:
            file_system, source = fields[fields.index("-") + 1 :][:2]
            return _unescaped(fields[4]), file_system, _unescaped(source)
    return "", "unknown", ""  # a mount outside of this process's namespace


def _unescaped(text: str) -> str:
    """Undo the octal numbers that the kernel writes for blanks in names."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _uuid_from_kernel(handle: int) -> str | None:
    answer = bytearray(17)
    try:
        fcntl.ioctl(handle, _GET_UUID, answer)
    except OSError:
        return None
    return str(uuid.UUID(bytes=bytes(answer[1:]))) if any(answer[1:]) else None


def _uuid_from_links(device_id: int) -> str | None:
    with contextlib.suppress(OSError):
        for link in Path("/dev/disk/by-uuid").iterdir():
            if link.stat().st_rdev == device_id:
                return link.name
    return None


def _device_number(source: str) -> int:
    """Return the number of the device file that a mount names; 0 for none."""
    with contextlib.suppress(OSError):
        return Path(source).stat().st_rdev
    return 0


def _model(device_id: int) -> str | None:
    block = Path(f"/sys/dev/block/{os.major(device_id)}:{os.minor(device_id)}")
    # the device, or the disk of which it is a partition, or that it is mapped to
    for model in ("device/model", "../device/model", "slaves/*/device/model"):
        for path in block.resolve().glob(model) if block.exists() else ():
            with contextlib.suppress(OSError):
                return path.read_text().strip() or None
    return None
