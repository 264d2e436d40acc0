"""What a device profile says to whoever loads and opens: block size and queue depth."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

from bandana_kv.adapters.contract import PAGE_BYTES
from bandana_kv.device.record import DeviceProfile
from bandana_kv.errors import InputError

__all__ = [
    "DEFAULT_DEPTH",
    "NO_PROFILE",
    "PROFILE_FILE",
    "OtherDeviceWarning",
    "depth_of",
    "given_profile",
    "pages_of",
]

PROFILE_FILE = "device.json"
DEFAULT_DEPTH = 16
NO_PROFILE = "{}: no device profile, {} reads in flight; tools/profile_device.py measures one"
_log = logging.getLogger("bandana_kv")


class OtherDeviceWarning(UserWarning):
    """A profile was measured on another mount than the store lies on."""


def given_profile(
    profile: DeviceProfile | str | os.PathLike[str] | None,
) -> DeviceProfile | None:
    """Return the profile that a caller named.

    Raises
    ------
    InputError, FormatError
        It is neither a profile nor the path of one.
    """
    if profile is None or isinstance(profile, DeviceProfile):
        return profile
    if not isinstance(profile, (str, os.PathLike)):
        raise InputError(f"profile {profile!r} is neither a DeviceProfile nor the path of one")
    return DeviceProfile.read(profile)


def _kept_profile(root: Path) -> DeviceProfile | None:
    path = root / PROFILE_FILE
    return DeviceProfile.read(path) if path.exists() else None


def pages_of(root: Path, profile: DeviceProfile | None) -> int:
    """Return how many pages a block should have, at least.

    Engines store whole pages: a device that reads half a page as gladly changes nothing.
    """
    profile = profile or _kept_profile(root)
    return 1 if profile is None else max(1, profile.block_bytes // PAGE_BYTES)


def depth_of(root: Path, profile: DeviceProfile | None) -> int:
    """Return how many reads to keep in flight; says where that comes from.

    Warns
    -----
    OtherDeviceWarning
        The profile belongs to another mount.
    """
    profile = profile or _kept_profile(root)
    if profile is None:
        _log.info(
            NO_PROFILE.format(root, DEFAULT_DEPTH),
            extra={"event": "profile_missing", "store": str(root), "readers": DEFAULT_DEPTH},
        )
        return DEFAULT_DEPTH
    if not profile.matches(root):
        warnings.warn(
            f"{root}: its device profile was measured on {profile.mount.mount_point}, another "
            "mount; measure this one with tools/profile_device.py",
            OtherDeviceWarning,
            stacklevel=5,
        )
    return profile.queue_depth
