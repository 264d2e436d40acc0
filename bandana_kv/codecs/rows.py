"""Single stored rows, for kernels that take rows where they lie."""

from __future__ import annotations

import numpy as np

from bandana_kv.codecs.halves import halves_of, uppers_of
from bandana_kv.codecs.int4_rowwise import nibbles_of
from bandana_kv.codecs.int8_rowwise import bytes_of
from bandana_kv.kernels.addresses import bytes_at, uint16s_at
from bandana_kv.kernels.compile import inlined, signed

__all__ = ["NUMBERS", "decoded"]

# Constants of kernels.

_FLOAT32, _FLOAT16, _BFLOAT16, _INT8_ROWWISE, _INT4_ROWWISE = range(5)

NUMBERS = {
    "float32": _FLOAT32,
    "float16": _FLOAT16,
    "bfloat16": _BFLOAT16,
    "int8-rowwise": _INT8_ROWWISE,
    "int4-rowwise": _INT4_ROWWISE,
}
"""By the name of a codec: what kernels know it by."""


@inlined
def decoded(codec: int, address: int, row_bytes: int, room: np.ndarray) -> int:
    """Return where the row at `address` is as float32 (dim,), as `Codec.decode` gives it.

    Parameters
    ----------
    codec
        Of :data:`NUMBERS`.
    room
        float32 (dim,): where the row goes, unless it can be taken as it lies.
    """
    if codec == _FLOAT16:
        halves_of(uint16s_at(address, room.size), room)
    elif codec == _BFLOAT16:
        uppers_of(uint16s_at(address, room.size), room)
    elif codec == _INT8_ROWWISE:
        bytes_of(bytes_at(address, row_bytes), room)
    elif codec == _INT4_ROWWISE:
        nibbles_of(bytes_at(address, row_bytes), room)
    else:
        return address
    return signed(room.ctypes.data)
