"""Numbers from their bits, for kernels that read rows of bytes."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending

from bandana_kv.kernels.compile import inlined

__all__ = ["float32_of", "fused", "half_of"]

types: Any = numba.types
intrinsic: Any = extending.intrinsic

# Constants of kernels.

_SIGN, _REST = np.uint32(0x8000), np.uint32(0x7FFF)
_TO_FLOAT = np.uint32(0x77800000)  # 2**112: the exponents of halves begin so much later
_NO_NUMBER = np.float32(65536.0)  # what infinity and NaN would be, were they numbers
_EXPONENT = np.uint32(0x7F800000)


@intrinsic  # type: ignore[untyped-decorator]
def float32_of(typing_context: Any, bits: Any) -> Any:
    """Return the float32 that has these 32 bits."""
    del typing_context, bits

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _bits_of(typing_context: Any, number: Any) -> Any:
    """Return the 32 bits of a float32."""
    del typing_context, number

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def fused(typing_context: Any, factor: Any, number: Any, addend: Any) -> Any:
    """Return ``factor * number + addend``, all float32 or all float64, rounded once."""
    del typing_context, factor, number
    kind = types.float64 if addend == types.float64 else types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.fma(*arguments)

    return kind(kind, kind, kind), generate


@inlined
def half_of(bits: Any) -> float:
    """Return the float32 that equals the half of these 16 bits, infinities and NaN included."""
    wide = np.uint32(bits)
    number = float32_of(np.uint32((wide & _REST) << np.uint32(13))) * float32_of(_TO_FLOAT)
    magnitude = _bits_of(number)
    if number >= _NO_NUMBER:
        magnitude = magnitude | _EXPONENT
    half: float = float32_of(np.uint32(magnitude | ((wide & _SIGN) << np.uint32(16))))
    return half
