"""What a device can do: measured once, kept as a profile, asked by whatever plans reads."""

from bandana_kv.device.mount import Mount
from bandana_kv.device.profiler import profile
from bandana_kv.device.record import BlockSize, Cell, DeviceProfile, WriteRates

__all__ = ["BlockSize", "Cell", "DeviceProfile", "Mount", "WriteRates", "profile"]
