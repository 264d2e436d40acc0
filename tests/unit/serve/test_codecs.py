"""Tables whose rows are stored in fewer bytes, through load, serving, updates and repair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

import bandana_kv
from bandana_kv import Rows
from bandana_kv.codecs import codec_named, codec_names
from bandana_kv.disk import manifest
from bandana_kv.errors import InputError

ROWS, DIM = 700, 13
VALUES = np.random.default_rng(4).standard_normal((ROWS, DIM)).astype(np.float32)
ENGINES = ["blockfile", "lmdb", "rocksdb"]
LOSSY = [name for name in codec_names() if name != "float32"]


def coded(name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as a codec stores them, and as it gives them back."""
    codec = codec_named(name)
    raw = codec.encode(np.ascontiguousarray(rows, np.float32))
    out = np.empty(rows.shape, np.float32)
    codec.decode(raw, out)
    return raw, out


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("adapter", ENGINES)
def test_rows_are_what_the_codec_makes_of_them(tmp_path: Path, adapter: str, name: str) -> None:
    bandana_kv.load(tmp_path / "s", {"t": VALUES}, adapter=adapter, store_as=name)
    raw, expected = coded(name, VALUES)
    with bandana_kv.open(tmp_path / "s", cache_bytes=20_000) as store:
        assert store.dtype("t") == np.float32
        assert store.shape("t") == (ROWS, DIM)
        for _ in range(2):
            ids = np.random.default_rng(1).integers(0, ROWS, (40, 20))
            for each in ids:
                assert np.array_equal(store.multi_get("t", each), expected[each])
        assert np.array_equal(store.multi_get("t", ids), expected[ids])
        assert np.array_equal(store.multi_get_raw("t", ids), raw[ids])
        assert np.array_equal(store["t"].multi_get_raw(ids[0]), raw[ids[0]])
        assert np.array_equal(store.get("t", 3), expected[3])
        halves = store.multi_get("t", ids[0], dtype=np.float16)
        assert halves.dtype == np.float16
        assert np.array_equal(halves, expected[ids[0]].astype(np.float16))
        out = np.empty((20, DIM), np.float16)
        assert store.multi_get("t", ids[1], out=out) is out
        assert np.array_equal(out, expected[ids[1]].astype(np.float16))
        out32 = np.empty((20, DIM), np.float32)
        store.multi_get("t", ids[1], out=out32)
        assert np.array_equal(out32, expected[ids[1]])
        assert store.multi_get("t", []).shape == (0, DIM)
        store.check()


def test_several_tables_of_several_codecs_are_asked_together(tmp_path: Path) -> None:
    forms = dict(zip("abcd", LOSSY, strict=True))
    tables = {name: VALUES + at for at, name in enumerate([*forms, "plain"])}
    bandana_kv.load(tmp_path / "s", tables, store_as=forms)
    expected = {name: coded(form, tables[name])[1] for name, form in forms.items()}
    expected["plain"] = tables["plain"]
    ids = {name: np.random.default_rng(at).integers(0, ROWS, 7) for at, name in enumerate(tables)}
    with bandana_kv.open(tmp_path / "s", cache_bytes=50_000) as store:
        answer = store.multi_get(ids)
        batch = store.batch(list(tables))
        joined, edges = np.concatenate(list(ids.values())), np.arange(0, 36, 7)
        flat = batch.multi_get(joined, edges)
        out = [np.empty((7, DIM), np.float32) for _ in tables]
        batch.multi_get(joined, edges, out)
        whole = np.empty((35, DIM), np.float32)
        assert batch.multi_get(joined, edges, whole) is whole
        for at, name in enumerate(tables):
            right = expected[name][ids[name]]
            part = slice(7 * at, 7 * at + 7)
            assert np.array_equal(answer[name], right)
            assert np.array_equal(np.asarray(flat)[part], right)
            assert np.array_equal(out[at], right)
            assert np.array_equal(whole[part], right)
        pooled = store.embedding_bag("c", [[1, 2], [3, 3]], mode="sum")
        assert np.array_equal(pooled[0], expected["c"][1] + expected["c"][2])


@pytest.mark.parametrize("name", LOSSY)
def test_updates_are_encoded_as_the_load_does(tmp_path: Path, name: str) -> None:
    bandana_kv.load(tmp_path / "s", {"t": VALUES}, store_as=name)
    expected = coded(name, VALUES)[1]
    new = np.random.default_rng(9).standard_normal((5, DIM)).astype(np.float32)
    ids = [3, 1, 699, 20, 21]
    with bandana_kv.open(tmp_path / "s", cache_bytes=20_000) as store:
        store.update("t", ids, new)
        expected[ids] = coded(name, new)[1]
        assert np.array_equal(store.multi_get("t", range(ROWS)), expected)
        store.flush()
        assert np.array_equal(store.multi_get("t", range(ROWS)), expected)
        store.check()
        if name in ("float16", "int8-rowwise"):
            with pytest.raises(InputError, match="row of id 20 does not fit"):
                store.update("t", [2, 20], np.array([[1.0] * DIM, [3e38, -3e38] * 6 + [0]], "f4"))
    with bandana_kv.open(tmp_path / "s", cache_bytes=20_000) as store:
        assert np.array_equal(store.multi_get("t", range(ROWS)), expected)


@pytest.mark.parametrize("name", ["int8-rowwise", "int4-rowwise"])
def test_rows_that_are_quantised_already_are_stored_as_they_are(tmp_path: Path, name: str) -> None:
    values = VALUES[:, :12]
    raw, expected = coded(name, values)
    bandana_kv.load(tmp_path / "s", {"t": Rows(raw, encoded=name)})
    with bandana_kv.open(tmp_path / "s", cache_bytes=20_000) as store:
        assert np.array_equal(store.multi_get_raw("t", range(ROWS)), raw)
        assert np.array_equal(store.multi_get("t", range(ROWS)), expected)
    table = manifest.read_current(tmp_path / "s").tables["t"]
    assert (table.codec, table.dim, table.loss) == (name, 12, None)
    with pytest.raises(InputError, match="already"):
        bandana_kv.load(tmp_path / "s", {"t": Rows(raw, encoded=name)}, store_as="float16")
    with pytest.raises(InputError, match=r"uint8.*encoded="):
        bandana_kv.load(tmp_path / "s", {"t": raw}, store_as=name)
    with pytest.raises(InputError, match="no rows of"):
        bandana_kv.load(tmp_path / "s", {"t": Rows(values, encoded=name)})


def test_what_it_costs_is_kept_with_the_table(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[77] = 1e-9
    values[77, 0] = 1.0
    values[77, 1:] = 0.03
    bandana_kv.load(tmp_path / "s", {"t": values}, store_as="int4-rowwise")
    loss = manifest.read_current(tmp_path / "s").tables["t"].loss
    back = coded("int4-rowwise", values)[1]
    assert loss is not None
    assert loss.max_error == pytest.approx(np.abs(back - values).max())
    assert loss.rms_error == pytest.approx(np.sqrt(np.square(back - values).mean()))
    cosines = (back * values).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(values, axis=1)
    assert loss.mean_cosine == pytest.approx(cosines.mean())
    assert loss.least_cosine == pytest.approx(cosines.min())
    assert loss.worst_rows[0] == cosines.argmin()
    assert len(loss.worst_rows) == 10


def test_what_rows_are_already_is_not_encoded(tmp_path: Path) -> None:
    halves = VALUES.astype(np.float16)
    bandana_kv.load(tmp_path / "s", {"t": halves, "u": VALUES}, store_as={"t": "float16"})
    tables = manifest.read_current(tmp_path / "s").tables
    assert (tables["t"].codec, tables["u"].codec) == ("", "")
    with bandana_kv.open(tmp_path / "s") as store:
        assert store.dtype("t") == np.float16
        assert np.array_equal(store.multi_get("t", [5], dtype=np.float32), halves[[5]])


def test_bfloat16_rows_are_answered_as_float32(tmp_path: Path) -> None:
    values = VALUES.astype(ml_dtypes.bfloat16)
    bandana_kv.load(tmp_path / "s", {"t": values})
    with bandana_kv.open(tmp_path / "s") as store:
        rows = store.multi_get("t", [3, 4])
        assert rows.dtype == np.float32
        assert np.array_equal(rows, values[[3, 4]].astype(np.float32))
        same = store.multi_get("t", [3, 4], dtype=ml_dtypes.bfloat16)
        assert np.array_equal(same.view(np.uint16), values[[3, 4]].view(np.uint16))


@pytest.mark.parametrize(
    ("values", "form", "message"),
    [
        (VALUES.astype(np.int32), "int8-rowwise", "rows of int32 cannot be stored"),
        (VALUES, "int2", "no codec 'int2'"),
        (np.full((3, 2), np.nan, np.float32), "int8-rowwise", "row of id 0 does not fit"),
        (np.full((3, 2), 1e300), "bfloat16", "beyond those of float32"),
    ],
)
def test_what_cannot_be_stored_so_is_refused_and_leaves_nothing(
    tmp_path: Path, values: np.ndarray, form: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bandana_kv.load(tmp_path / "s", {"t": values}, store_as=form)
    assert not (tmp_path / "s" / "CURRENT").exists()


def test_a_store_as_for_a_table_that_is_not_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'u', which is not loaded"):
        bandana_kv.load(tmp_path / "s", {"t": VALUES}, store_as={"u": "float16"})


@pytest.mark.parametrize("dtype", ["float64", "int8", "nonsense"])
def test_other_dtypes_are_not_answered(tmp_path: Path, dtype: Any) -> None:
    bandana_kv.load(tmp_path / "s", {"t": VALUES}, store_as="float16")
    with bandana_kv.open(tmp_path / "s") as store, pytest.raises(InputError, match=dtype):
        store.multi_get("t", [1], dtype=dtype)


def test_fallback_repair_and_replacement_know_codecs(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bandana_kv.load(path, {"t": VALUES}, adapter="blockfile", store_as="int8-rowwise")
    expected = coded("int8-rowwise", VALUES)[1]
    file = next(path.rglob("*.blocks"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with bandana_kv.open(path, fallback=lambda _, ids: VALUES[ids]) as store:
        assert np.array_equal(store.multi_get("t", range(ROWS)), expected)
        assert store.stats()["t"]["fallback_rows"] > 0
    bandana_kv.repair(path, {"t": lambda _, ids: VALUES[ids]})
    assert bandana_kv.verify(path).problems == 0
    with bandana_kv.open(path) as store:
        assert np.array_equal(store.multi_get("t", range(ROWS)), expected)


def test_a_repair_names_the_row_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bandana_kv.load(path, {"t": VALUES}, adapter="blockfile", store_as="int8-rowwise")
    for each in (path / "segments").rglob("*.blocks"):
        image = bytearray(each.read_bytes())
        raw = codec_named("int8-rowwise").encode(VALUES[600:601]).tobytes()
        image[image.index(raw)] ^= 1
        each.write_bytes(image)
    bad = VALUES.copy()
    bad[600, 2] = np.nan
    with pytest.raises(InputError, match="table 't': the row of id 600 does not fit: "):
        bandana_kv.repair(path, {"t": lambda _, ids: bad[ids]})
    assert bandana_kv.repair(path, {"t": lambda _, ids: VALUES[ids]}).repaired_blocks == 1


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", ["str", "int64"])
def test_keys_beside_rows_that_are_quantised_already_are_used(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    packed = codec_named("int8-rowwise").encode(VALUES)
    numbers = np.random.default_rng(7).permutation(ROWS) * 12_345
    keys = numbers if kind == "int64" else np.array([f"k{each}" for each in numbers], object)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(packed.reshape(-1)), packed.shape[1])
    table = pa.table({"rows": lists, "key": pa.array(keys)})
    if suffix == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
            writer.write_table(table)
    rows = Rows(f"{tmp_path}/a.{suffix}:rows:key", encoded="int8-rowwise")
    bandana_kv.load(tmp_path / "s", {"t": rows}, adapter="blockfile")
    with bandana_kv.open(tmp_path / "s") as store:
        assert np.array_equal(store.multi_get_raw("t", keys[[5, 600]]), packed[[5, 600]])


def test_signalling_nan_are_kept_without_a_warning(tmp_path: Path) -> None:
    bits = np.full((ROWS, DIM), 0x7FF0_0000_0000_0001, np.uint64)
    bits[0] = 0
    for at, name in enumerate(["float16", "bfloat16", None]):
        path = tmp_path / str(at)
        bandana_kv.load(path, {"t": bits.view(np.float64)}, store_as=name, adapter="blockfile")
        with bandana_kv.open(path) as store:
            for kind in (None, np.float32, np.float16):
                rows = store.multi_get("t", np.arange(ROWS), dtype=kind)
                assert np.isnan(rows[1:]).all()
                assert not rows[0].any()
