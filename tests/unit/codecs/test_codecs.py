"""Every codec against plain NumPy, bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bandana_kv.codecs import codec_named, codec_names
from bandana_kv.codecs.unfit import UnfitError
from bandana_kv.errors import InputError

SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-40, 5.9e-8, 6.1e-5, 65504.0, 1.0, 1.0 + 2**-11, 255.0, -3.25], np.float32
)


def decoded(name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    codec = codec_named(name)
    raw = codec.encode(rows)
    assert raw.shape == (len(rows), codec.row_bytes(rows.shape[1]))
    assert raw.dtype == np.uint8
    assert codec.dim_of(raw.shape[1]) - rows.shape[1] in (0, 1)
    out = np.full_like(rows, 7)
    codec.decode(raw, out)
    return out


def int8_reference(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """As PyTorch's byte_prepack and byte_unpack, a number at a time; fused by float64 and once."""
    out = np.empty_like(rows)
    for i, row in enumerate(rows):
        low, span = row.min(), np.float32(row.max() - row.min())
        scale, steps = (
            np.float32(span / np.float32(255)),
            np.float32(255) / (span + np.float32(1e-8)),
        )
        for k, number in enumerate(row):
            step = np.rint(np.float32(np.float32(number - low) * steps))
            # The product is exact in float64, and one rounding of the exact sum is looked for.
            exact = np.longdouble(step) * np.longdouble(scale) + np.longdouble(low)
            out[i, k] = np.float32(exact)
    return out


def int4_reference(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.empty_like(rows)
    for i, row in enumerate(rows):
        low = np.float32(np.float16(row.min()))
        span = np.float32(row.max() - low)
        scale = np.float32(np.float16(span / np.float32(15))) if span else np.float32(1)
        with np.errstate(divide="ignore", over="ignore"):
            if scale == 0 or np.isinf(np.float32(1) / scale):
                scale = np.float32(1)
        steps = np.float32(1) / scale
        for k, number in enumerate(row):
            step = min(15, max(0, np.rint(np.float32(np.float32(number - low) * steps))))
            out[i, k] = np.float32(np.longdouble(step) * np.longdouble(scale) + np.longdouble(low))
    return out


REFERENCES: dict[str, Any] = {
    "float32": lambda rows: rows,
    "float16": lambda rows: rows.astype(np.float16).astype(np.float32),
    "bfloat16": lambda rows: rows.astype(ml_dtypes.bfloat16).astype(np.float32),
    "int8-rowwise": int8_reference,
    "int4-rowwise": int4_reference,
}


def same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    return bool(np.array_equal(found.view(np.uint32), expected.view(np.uint32)))


def test_every_codec_is_compared() -> None:
    assert set(REFERENCES) == set(codec_names())


@pytest.mark.parametrize("name", codec_names())
@settings(max_examples=150, deadline=None)
@given(
    dim=st.integers(1, 1024),
    count=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-42, 1e-30, 1e-8, 1e-3, 1.0, 100.0, 3000.0]),
    special=st.booleans(),
)
def test_rows_come_back_as_the_reference_says(
    name: str, dim: int, count: int, seed: int, scale: float, special: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((count, dim)) * scale).astype(np.float32)
    if special:
        rows = np.where(rng.random(rows.shape) < 0.5, rng.choice(SPECIAL, rows.shape), rows)
        rows = rows.astype(np.float32)
    assert same(decoded(name, rows), REFERENCES[name](rows))


@pytest.mark.parametrize("name", codec_names())
def test_constant_rows_come_back(name: str) -> None:
    rows = np.repeat(np.array([0, 1, -2.5, 1000, 2**-14], np.float32)[:, None], 9, axis=1)
    assert np.array_equal(decoded(name, rows), rows)


DIMS = st.one_of(st.integers(1, 1024), st.sampled_from([1, 2, 3, 31, 32, 33, 1023, 1024]))
BEYOND = {"float16": 65520.0, "bfloat16": 2.0**128 - 2.0**119, "int4-rowwise": 65520.0}
"""From where on, in size, a codec refuses a constant; others hold all that is finite."""


@pytest.mark.parametrize("name", codec_names())
@settings(max_examples=60, deadline=None)
@given(dim=DIMS, number=st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(dim=7, number=3.4028234663852886e38)
@example(dim=1, number=65519.99609375)
@example(dim=1024, number=-1.401298464324817e-45)
def test_constants_of_any_size_and_dim(name: str, dim: int, number: float) -> None:
    rows = np.full((2, dim), number, np.float32)
    rows[0] = 1
    if abs(number) >= BEYOND.get(name, np.inf):
        with pytest.raises(UnfitError, match=f"row 1 does not fit {name}"):
            codec_named(name).encode(rows)
        return
    found = decoded(name, rows)
    assert same(found, REFERENCES[name](rows))
    if name == "int8-rowwise":  # no step is needed, and the bias is whole
        assert np.array_equal(found, rows)


@pytest.mark.parametrize("name", codec_names())
@settings(max_examples=40, deadline=None)
@given(dim=DIMS, seed=st.integers(0, 2**32 - 1), bits=st.integers(1, 23))
def test_denormals_of_any_dim(name: str, dim: int, seed: int, bits: int) -> None:
    """Numbers below 2**-126, of either sign, and zeros of either sign; nothing is flushed."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << bits, (2, dim), np.uint32) | rng.integers(
        0, 2, (2, dim), np.uint32
    ) << np.uint32(31)
    rows = words.view(np.float32)
    found = decoded(name, rows)
    assert same(found, REFERENCES[name](rows))
    if name == "float32":
        assert same(found, rows)


@pytest.mark.parametrize("name", codec_names())
@settings(max_examples=60, deadline=None)
@given(
    dim=DIMS,
    seed=st.integers(0, 2**32 - 1),
    number=st.sampled_from([np.inf, -np.inf, np.nan]),
    many=st.booleans(),
)
def test_infinities_and_nan_anywhere_are_kept_or_refused_as_the_page_says(
    name: str, dim: int, seed: int, number: float, many: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((3, dim)).astype(np.float32)
    rows[1, slice(None) if many else rng.integers(dim)] = number
    if name.endswith("-rowwise"):
        with pytest.raises(UnfitError, match=f"row 1 does not fit {name}") as raised:
            codec_named(name).encode(rows)
        assert raised.value.row == 1
        return
    found = decoded(name, rows)
    assert np.array_equal(found, REFERENCES[name](rows), equal_nan=True)
    assert np.array_equal(found[1] == number, rows[1] == number)


@pytest.mark.parametrize("name", codec_names())
@settings(max_examples=40, deadline=None)
@given(dim=DIMS, seed=st.integers(0, 2**32 - 1))
def test_rows_of_any_bits_come_back_or_are_refused(name: str, dim: int, seed: int) -> None:
    """All of float32 there is, NaN and all: no row is answered that is not what it should be."""
    words = np.random.default_rng(seed).integers(0, 1 << 32, (3, dim), np.uint32)
    rows = words.view(np.float32)
    try:
        found = decoded(name, rows)
    except UnfitError:
        assert name != "float32"
        return
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.array_equal(found, REFERENCES[name](rows), equal_nan=True)


def test_all_halves_and_all_bfloats_are_decoded() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(64, 1024)
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        out = np.empty(bits.shape, np.float32)
        codec_named(name).decode(bits.view(np.uint8), out)
        expected = bits.view(dtype).astype(np.float32)
        numbers = ~np.isnan(expected)
        assert same(out[numbers], expected[numbers])
        assert np.isnan(out[~numbers]).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_infinities_and_nan_are_kept(name: str) -> None:
    rows = np.array([[np.inf, -np.inf, np.nan, 1.0]], np.float32)
    assert np.array_equal(decoded(name, rows), rows, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("float16", 65520.0),
        ("bfloat16", 3.4e38),
        ("int8-rowwise", np.nan),
        ("int8-rowwise", np.inf),
        ("int4-rowwise", np.nan),
        ("int4-rowwise", -np.inf),
        ("int4-rowwise", 1e6 * 2),
        ("int4-rowwise", -1e5),
    ],
)
def test_what_a_codec_cannot_hold_is_refused_by_its_row(name: str, number: float) -> None:
    rows = np.zeros((4, 3), np.float32)
    rows[2, 1] = number
    with pytest.raises(UnfitError, match=f"row 2 does not fit {name}") as raised:
        codec_named(name).encode(rows)
    assert raised.value.row == 2


def test_a_range_that_overflows_is_refused() -> None:
    with pytest.raises(UnfitError, match="range"):
        codec_named("int8-rowwise").encode(np.array([[3e38, -3e38]], np.float32))


def test_layout_of_eight_bits() -> None:
    raw = codec_named("int8-rowwise").encode(np.array([[0.0, 255.0, 51.0]], np.float32))
    assert raw[0, :3].tolist() == [0, 255, 51]
    assert raw[0, 3:].view("<f4").tolist() == [1.0, 0.0]


def test_layout_of_four_bits_has_the_even_column_low_and_odd_dims() -> None:
    raw = codec_named("int4-rowwise").encode(np.array([[0.0, 15.0, 3.0, 2.0, 7.0]], np.float32))
    assert raw[0, :3].tolist() == [0xF0, 0x23, 0x07]
    assert raw[0, 3:].view("<f2").tolist() == [1.0, 0.0]


def test_an_unknown_codec_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no codec 'int2'.*int8-rowwise"):
        codec_named("int2")


@pytest.mark.parametrize(
    ("name", "pack", "unpack"),
    [
        ("int8-rowwise", "embedding_bag_byte_prepack", "embedding_bag_byte_unpack"),
        ("int4-rowwise", "embedding_bag_4bit_prepack", "embedding_bag_4bit_unpack"),
    ],
)
@pytest.mark.parametrize("dim", [2, 8, 32, 64, 130])
def test_bytes_and_rows_are_those_of_pytorch(name: str, pack: str, unpack: str, dim: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(dim)
    rows = (rng.standard_normal((500, dim)) * 10.0 ** rng.integers(-6, 3, (500, 1))).astype("f4")
    rows[0], rows[1] = 0, 3.5
    ops = torch.ops.quantized
    packed = getattr(ops, pack)(torch.from_numpy(rows))
    codec = codec_named(name)
    assert np.array_equal(codec.encode(rows), packed.numpy())
    out = np.empty_like(rows)
    codec.decode(packed.numpy(), out)
    assert same(out, getattr(ops, unpack)(packed).numpy())
