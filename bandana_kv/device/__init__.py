"""What a device can do: measured once, kept as a profile, and what it means for blocks and reads.

Imports placement, to choose a block size by a log; opens no store.
"""

from bandana_kv.device.mount import Mount
from bandana_kv.device.profiler import profile
from bandana_kv.device.record import BlockSize, Cell, DeviceProfile, WriteRates

__all__ = ["BlockSize", "Cell", "DeviceProfile", "Mount", "WriteRates", "profile"]
