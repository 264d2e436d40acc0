"""Arrays by their address, atomic words, and a lock that compiled code takes: for kernels only.

Handing an array to a kernel costs 60 to 100 ns, and a table's state is some thirty arrays. So
kernels take one array of words, in which the addresses of all others stand, and look at those
where they lie. Whoever makes such words keeps the arrays alive.
"""

from __future__ import annotations

import platform
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending
from numba.core import cgutils
from numba.np import arrayobj

from bandana_kv.kernels.compile import inlined, kernel, signed

__all__ = [
    "add",
    "bytes_at",
    "call_at",
    "compare_and_set",
    "doubles_at",
    "enter_lock",
    "floats_at",
    "ints_at",
    "last_errno",
    "leave_lock",
    "load",
    "lock_alone",
    "now_ns",
    "prefetch",
    "store",
    "try_enter_lock",
    "try_lock_alone",
    "uint16s_at",
    "uint32s_at",
    "uint64s_at",
    "unlock_alone",
    "wait_word",
    "wake_descriptor",
    "wake_word",
    "word_anywhere",
    "words_at",
]

# numba's own annotations say too little of these.
types: Any = numba.types
intrinsic: Any = extending.intrinsic

_int64 = types.int64
_sched_yield: Any = types.ExternalFunction("sched_yield", types.int32())
_syscall: Any = types.ExternalFunction("syscall", _int64(*[_int64] * 7))

_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, _int64))
_eventfd_write: Any = types.ExternalFunction(
    "eventfd_write", types.int32(types.int32, types.uint64)
)
_errno_at: Any = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())

_SYS_FUTEX = 202 if platform.machine() == "x86_64" else 98
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_ALONE = 1 << 32
# Looks at a word before the processor is offered to others: a holder that runs is done sooner.
_SPINS = 200


def _array_at(dtype: Any) -> Any:
    """Return an intrinsic: address, count -> an array (count,) that nobody counts references of."""
    kind = types.Array(dtype, 1, "C")
    populate: Any = arrayobj.populate_array

    @intrinsic  # type: ignore[untyped-decorator]
    def at(typing_context: Any, address: Any, count: Any) -> Any:
        del typing_context, address, count

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            del signature
            address, count = arguments
            item = context.get_data_type(dtype)
            item_bytes = context.get_constant(types.intp, context.get_abi_sizeof(item))
            array = context.make_array(kind)(context, builder)
            populate(
                array,
                builder.inttoptr(address, item.as_pointer()),
                [count],
                [item_bytes],
                item_bytes,
                None,
            )
            return array._getvalue()

        return kind(_int64, _int64), generate

    return at


bytes_at = _array_at(types.uint8)
doubles_at = _array_at(types.float64)
floats_at = _array_at(types.float32)
ints_at = _array_at(types.int32)
uint16s_at = _array_at(types.uint16)
uint32s_at = _array_at(types.uint32)
uint64s_at = _array_at(types.uint64)
words_at = _array_at(types.int64)


def _element(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, words: Any, at: Any) -> Any:
    """Read ``words[at]``, int64, and nothing written before it was later."""
    del typing_context, at

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = _element(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(element, "seq_cst", 8)

    return _int64(words, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, words: Any, at: Any, value: Any) -> Any:
    """Write ``words[at]``, int64, once all that was written before is there."""
    del typing_context, at, value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = _element(context, builder, signature.args[0], *arguments[:2])
        builder.store_atomic(arguments[2], element, "release", 8)
        return context.get_dummy_value()

    return types.void(words, types.intp, _int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def add(typing_context: Any, words: Any, at: Any, value: Any) -> Any:
    """Add to ``words[at]``, int64, in one step; return what was there."""
    del typing_context, at, value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = _element(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", element, arguments[2], "seq_cst")

    return _int64(words, types.intp, _int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def compare_and_set(typing_context: Any, words: Any, at: Any, seen: Any, value: Any) -> Any:
    """Write ``words[at]``, int64, if it is as it was seen; return whether it was."""
    del typing_context, at, seen, value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = _element(context, builder, signature.args[0], *arguments[:2])
        done = builder.cmpxchg(element, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.extract_value(done, 1)

    return types.boolean(words, types.intp, _int64, _int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def word_anywhere(typing_context: Any, address: Any) -> Any:
    """Read the uint64 at an address, which need not be a multiple of eight.

    Put together of two halves it takes three times as long, and keeps loops from being unrolled.
    """
    del typing_context, address

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        found = builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
        found.align = 1
        return found

    return types.uint64(_int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_at(typing_context: Any, address: Any, first: Any, second: Any, third: Any) -> Any:
    """Call the function at an address, of three int64, that :func:`compiled.foreign` made."""
    del typing_context, address, first, second, third

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word] * 3)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return _int64(*[_int64] * 4), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, address: Any) -> Any:
    """Have the processor bring the cache line at an address; nothing happens where there is none.

    Of many random accesses each would else wait for memory by itself, where what is done with one
    keeps the processor from seeing the next.
    """
    del typing_context, address

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        insert: Any = cgutils.get_or_insert_function
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = insert(builder.module, kind, "llvm.prefetch.p0i8")
        read, keep, data = (ir.Constant(number, each) for each in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(_int64), generate


@inlined
def now_ns(clock: np.ndarray) -> int:
    """Return nanoseconds that only rise; `clock`, int64 (2,), is room to work in."""
    _clock_gettime(1, clock.ctypes.data)
    return signed(clock[0] * 1_000_000_000 + clock[1])


@kernel
def last_errno() -> int:
    """Return why this thread's last call of the system failed."""
    return signed(_errno_at()[0])


# -- a lock that many may share or one may have alone ---------------------------------------


@kernel
def _wait_for(words: np.ndarray, at: int, alone: bool) -> None:
    """Wait until nobody is alone in the lock, or if `alone`, until nobody else is inside."""
    spins = 0
    while True:
        seen = load(words, at)
        if seen == _ALONE if alone else seen < _ALONE:
            return
        spins += 1
        if spins % _SPINS == 0:
            _sched_yield()


@inlined
def enter_lock(words: np.ndarray, at: int) -> None:
    """Share the lock ``words[at]`` with others; whoever waits to be alone goes first."""
    while add(words, at, 1) >= _ALONE:
        add(words, at, -1)
        _wait_for(words, at, False)


@inlined
def leave_lock(words: np.ndarray, at: int) -> None:
    """End sharing it."""
    add(words, at, -1)


@inlined
def lock_alone(words: np.ndarray, at: int) -> None:
    """Have the lock ``words[at]`` alone: keep newcomers out, then wait for those inside."""
    while True:
        seen = load(words, at)
        if seen < _ALONE and compare_and_set(words, at, seen, seen + _ALONE):
            break
        _wait_for(words, at, False)
    _wait_for(words, at, True)


@inlined
def try_enter_lock(words: np.ndarray, at: int) -> bool:
    """Share the lock if that can be had in a moment: whoever holds the GIL must not wait."""
    for _ in range(_SPINS):
        if add(words, at, 1) < _ALONE:
            return True
        add(words, at, -1)
    return False


@inlined
def try_lock_alone(words: np.ndarray, at: int) -> bool:
    """Have the lock alone if that can be had in a moment."""
    for _ in range(_SPINS):
        if load(words, at) == 0 and compare_and_set(words, at, 0, _ALONE):
            return True
    return False


@inlined
def unlock_alone(words: np.ndarray, at: int) -> None:
    """End having it alone."""
    add(words, at, -_ALONE)


# -- waiting --------------------------------------------------------------------------------


@inlined
def wait_word(address: int, seen: int, timeout: int) -> None:
    """Sleep until somebody wakes the 32-bit word at `address`, if it is still as it was seen.

    `timeout` is the address of two int64, seconds and nanoseconds to sleep at most; 0: for ever.
    """
    _syscall(_SYS_FUTEX, address, _WAIT_PRIVATE, signed(np.int32(seen)), timeout, 0, 0)


@inlined
def wake_word(address: int) -> None:
    """Wake all who sleep on the word at `address`."""
    _syscall(_SYS_FUTEX, address, _WAKE_PRIVATE, 0x7FFFFFFF, 0, 0, 0)


@inlined
def wake_descriptor(descriptor: int) -> None:
    """Wake who waits for an eventfd to be readable."""
    _eventfd_write(np.int32(descriptor), np.uint64(1))
