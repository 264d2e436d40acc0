"""Devices by published figures, for those who have none to measure yet.

A published figure is a maker's promise for an empty, idle device: tools/profile_device.py measures
yours. Between depth 1 and the most reads a second, reads in flight are taken to share the device
evenly (Little's law). Tails are seldom published; the mean then stands for them, and the
report says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from bandana_kv.device import BlockSize, Cell, DeviceProfile, Mount
from bandana_kv.device.record import FORMAT_VERSION
from bandana_kv.errors import InputError

__all__ = ["DEVICE_CLASSES", "PUBLISHED", "DeviceClass", "device_class"]

PUBLISHED = "published"
"""What stands for the engine in a profile that nobody has measured."""

_DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_BLOCK_BYTES = 4096
_CLOSE = 0.95


@dataclass(frozen=True)
class DeviceClass:
    """What is published of a kind of device.

    Attributes
    ----------
    name, title, source : str
    reads_per_second : float
        Random reads of 4 KiB, at most.
    latency_us : float
        Of one such read on an idle device, as published.
    p99_us : float or None
        Of it, where published.
    dwpd : float or None
        Drive writes per day over `warranty_years`.
    """

    name: str
    title: str
    source: str
    reads_per_second: float
    latency_us: float
    p99_us: float | None = None
    dwpd: float | None = None
    warranty_years: float = 5.0

    def profile(self) -> DeviceProfile:
        """Return the figures as a profile."""
        cells = tuple(self._cell(depth) for depth in _DEPTHS)
        knee = next(
            cell for cell in cells if cell.reads_per_second >= _CLOSE * self._most_measured()
        )
        size = BlockSize(_BLOCK_BYTES, knee.depth, knee.reads_per_second, knee.p99_us, True)
        return DeviceProfile(
            format=FORMAT_VERSION,
            created="",
            kernel="",
            mount=Mount(0, "", "", None, self.title),
            engine=PUBLISHED,
            fio_version=None,
            quick=False,
            file_bytes=_BLOCK_BYTES,
            cells=cells,
            skipped_block_bytes=(),
            sizes=(size,),
            block_bytes=_BLOCK_BYTES,
            queue_depth=knee.depth,
            jobs=1,
            p99_budget_us=knee.p99_us,
            budget_met=True,
            spread=0.0,
        )

    def _cell(self, depth: int) -> Cell:
        rate = min(depth / self.latency_us * 1e6, self.reads_per_second)
        mean_us = depth / rate * 1e6
        tail_us = max(mean_us, self.p99_us or 0.0)
        return Cell(_BLOCK_BYTES, depth, 1, rate, mean_us, mean_us, tail_us)

    def _most_measured(self) -> float:
        return min(_DEPTHS[-1] / self.latency_us * 1e6, self.reads_per_second)


_USER_GUIDE = "Amazon EC2 User Guide (github.com/awsdocs/amazon-ec2-user-guide)"
_OPTANE_REVIEW = "AnandTech, Intel Optane SSD DC P4800X (anandtech.com/show/11209 and /11930)"

DEVICE_CLASSES = {
    each.name: each
    for each in (
        DeviceClass(
            "optane-p4800x",
            "Intel Optane SSD DC P4800X, 3D XPoint",
            f"{_OPTANE_REVIEW}: specified 550,000 random reads of 4 KiB a second at depth 16, "
            "30 drive writes per day for 5 years; one read measured there: 8.9 us mean, 10 us p99",
            550_000,
            8.9,
            10.0,
            30.0,
        ),
        DeviceClass(
            "nvme-micron-9200",
            "Micron 9200 PRO, 3D NAND on NVMe (PCIe 3)",
            "Micron, 9200 NVMe SSDs data sheet: up to 840,000 random reads of 4 KiB a second, "
            "92 to 150 us typical for one (150 taken); endurance by capacity, give it as TBW",
            840_000,
            150.0,
        ),
        DeviceClass(
            "nvme-p3700",
            "Intel SSD DC P3700 800 GB, NAND on NVMe (PCIe 3)",
            "AnandTech (anandtech.com/show/11209), measured: 4 KiB random reads, one: 77.9 us "
            "mean, 96 us p99; 167,200 a second at depth 16, the deepest shown",
            167_200,
            77.9,
            96.0,
        ),
        DeviceClass(
            "aws-i3.2xlarge",
            "Amazon EC2 i3.2xlarge instance store, NVMe",
            f"{_USER_GUIDE}, storage-optimized-instances.md: 412,500 random reads of 4 KiB a "
            "second at saturation; latency is not published, 150 us taken from the Micron class",
            412_500,
            150.0,
        ),
        DeviceClass(
            "aws-gp3",
            "Amazon EBS gp3, as it comes: a network block device",
            f"{_USER_GUIDE}, general-purpose.md: 3,000 reads a second, single-digit "
            "milliseconds (1 ms taken)",
            3_000,
            1000.0,
        ),
        DeviceClass(
            "aws-gp3-16000",
            "Amazon EBS gp3 with 16,000 reads a second provisioned",
            f"{_USER_GUIDE}, general-purpose.md: up to 16,000 reads a second, single-digit "
            "milliseconds (1 ms taken)",
            16_000,
            1000.0,
        ),
        DeviceClass(
            "aws-io2",
            "Amazon EBS io2 Block Express at its most",
            "Amazon EBS User Guide, ebs-optimization and the API's Ebs.iops: up to 256,000 reads a "
            "second; under 500 us on average for 16 KiB (500 taken)",
            256_000,
            500.0,
        ),
    )
}


def device_class(name: str) -> DeviceClass:
    """Return a named class.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name not in DEVICE_CLASSES:
        raise InputError(
            f"device class {name!r} is unknown; choose one of {', '.join(DEVICE_CLASSES)}"
        )
    return DEVICE_CLASSES[name]
