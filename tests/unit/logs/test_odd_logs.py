"""Logs as other programs write them: read aright, or refused with the row that is wrong."""

from __future__ import annotations

import csv
import decimal
import gzip
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandana_kv.errors import InputError
from bandana_kv.logs import LogOptions
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.formats import pieces

Read = Callable[..., list[list[int]]]


def requests_of(log: AccessLog) -> list[list[int]]:
    return [log.request(number).tolist() for number in range(log.requests)]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes text into a file of that name, and returns the requests that are read from it."""

    def written_and_read(name: str, text: str | bytes, **options: Any) -> list[list[int]]:
        data = text.encode() if isinstance(text, str) else text
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return requests_of(AccessLog.read(tmp_path / name, **options))

    return written_and_read


@pytest.fixture(params=[1, 5, 1 << 20], ids=lambda size: f"blocks of {size}")
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BLOCK_BYTES", request.param)


# Quotes


def test_a_quote_in_tsv_is_a_character(read: Read) -> None:
    rows = "".join(f'{k}\t"title\t{k}\n' if k % 10 else f"{k}\tx\t{k}\n" for k in range(1000))
    assert read("log.tsv", "request\ttitle\tid\n" + rows) == [[k] for k in range(1000)]


def test_quoting_may_be_switched(read: Read) -> None:
    text = 'request;note;id\n1;"a;b";5\n'
    assert read("log.csv", text, separator=";") == [[5]]
    with pytest.raises(InputError, match="line 2: the row has 4 fields, and not 3"):
        read("log.csv", text, separator=";", quoting=False)
    quoted = 'request\tid\n"a\tb"\t5\n"a\tb"\t6\n'
    assert read("log.tsv", quoted, quoting=True) == [[5, 6]]
    with pytest.raises(InputError, match=r"has 3 fields, and not 2.*'\\t'.*quoting=True"):
        read("log.tsv", quoted)


@pytest.mark.usefixtures("block_bytes")
def test_a_quote_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('request,id\n1,5\n"2,6\n3,7\n4,8\n')
    with pytest.raises(InputError, match="line 3: a quote opens there that is never closed"):
        AccessLog.read(path)
    log = AccessLog.read(path, bad_rows="skip")
    assert requests_of(log) == [[5], [7], [8]]
    assert log.skipped_rows == 1


@pytest.mark.usefixtures("block_bytes")
def test_a_quote_gone_wrong_does_not_take_lines_with_it(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('request,note,id\n1,"a,5\n2,b,6\n3,"c,7\n4,d,8\n')
    log = AccessLog.read(path, bad_rows="skip")
    assert requests_of(log) == [[6], [8]]
    assert log.skipped_rows == 2


# Rows and columns


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,Heat, again,1995,13", "line 3: the row has 5 fields, and not 4"),
        ("1,Heat,1995,13,", "line 3: the row has 5 fields, and not 4"),
        ("1,Heat,13", "line 3: the row ends before column 'id'"),
        ("1", "line 3: the row ends before column 'id'"),
    ],
)
def test_rows_have_as_many_fields_as_the_header(read: Read, row: str, message: str) -> None:
    text = f"request,title,year,id\n1,Heat,1995,12\n{row}\n2,Up,2009,14\n"
    with pytest.raises(InputError, match=message):
        read("log.csv", text)
    assert read("log.csv", text, bad_rows="skip") == [[12], [14]]


def test_too_few_fields_are_seen_behind_the_columns_that_count(read: Read) -> None:
    with pytest.raises(InputError, match="line 3: the row has 2 fields, and not 3"):
        read("log.csv", "request,id,note\n1,5,x\n2,6\n")


def test_separators_at_the_end_of_every_row_are_a_column(read: Read) -> None:
    assert read("log.csv", "request,id,\n1,5,\n1,6,\n") == [[5, 6]]


@pytest.mark.parametrize("separator", [";", "|", "\t", " ", "::", "§"])
def test_separators(read: Read, separator: str) -> None:
    text = "\n".join(separator.join(row) for row in (("request", "id"), ("a", "5"), ("a", "6")))
    assert read("log.csv", text, separator=separator) == [[5, 6]]
    assert read("log.tsv.gz", text, separator=separator) == [[5, 6]]


@pytest.mark.parametrize("separator", ["", '"', "\n", "a\r"])
def test_what_cannot_separate(read: Read, separator: str) -> None:
    with pytest.raises(InputError, match="cannot separate fields"):
        read("log.csv", "request,id\n1,2\n", separator=separator)


def test_text_may_have_another_separator(read: Read) -> None:
    assert read("log.txt", "1; 2;3\n4\n", separator=";") == [[1, 2, 3], [4]]
    with pytest.raises(InputError, match="'::' cannot separate ids"):
        read("log.txt", "1::2\n", separator="::")


def test_without_a_header(read: Read) -> None:
    assert read("log.csv", "a,5\nb,6\na,7\n", header=False) == [[5, 7], [6]]
    rows = "1::1193::5::978300760\n1::661::3::978302109\n2::3::4::1\n"
    columns = {"request": 1, "id": "2", "time": 4}
    options: dict[str, Any] = {"separator": "::", "header": False, "format": "csv"}
    assert read("ratings.dat", rows, columns=columns, **options) == [[3], [1193, 661]]
    with pytest.raises(InputError, match="4 columns and no header; say which hold"):
        read("ratings.dat", rows, **options)
    with pytest.raises(InputError, match="no column '5'; without a header its columns are 1 to 4"):
        read("ratings.dat", rows, columns={"request": "1", "id": "5"}, **options)
    with pytest.raises(InputError, match="line 3: the row has 3 fields, and not 2"):
        read("log.csv", "a,5\nb,6\na,7,8\n", header=False)


def test_a_header_that_is_missing_is_said(read: Read) -> None:
    with pytest.raises(InputError, match=r"its columns: '1', '5'.*header=False"):
        read("log.csv", "1,5\n2,6\n")


def test_a_header_over_two_lines(read: Read) -> None:
    assert read("log.csv", '"a\nb","request",id\nx,1,5\nx,1,6\n') == [[5, 6]]
    with pytest.raises(InputError, match="line 4: 'x' in column 'id'"):
        read("log.csv", '"a\nb",request,id\nx,1,5\nx,1,x\n')
    with pytest.raises(InputError, match="a quote opens there that is never closed"):
        read("log.csv", '"request,id\n1,5\n')


@pytest.mark.parametrize(
    "text",
    [
        "request,id\r" + "x" * 200_000 + ",1\r",
        "x" * 200_000 + ",request,id\n1,2,3\n",
        '"' + "x" * 200_000 + '",request,id\n1,2,3\n',
        "request,\0id\n1,2\n",
    ],
)
def test_no_error_of_another_package_escapes(read: Read, text: str) -> None:
    try:
        assert read("log.csv", text) in ([[1]], [[3]])
    except csv.Error:  # pragma: no cover
        pytest.fail("an error of the csv module")
    except InputError as error:
        assert "no column 'id'" in str(error)  # noqa: PT017 - one of the texts is refused


# Line ends


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_line_ends(read: Read, end: str, suffix: str) -> None:
    assert read(f"log.txt{suffix}", f"1 2{end}{end}3{end}4") == [[1, 2], [3], [4]]
    assert read(f"log.csv{suffix}", f"\ufeffrequest,id{end}a,1{end}{end}a,2{end}") == [[1, 2]]
    assert read(f"log.jsonl{suffix}", f"[1,2]{end}{end}[3]{end}") == [[1, 2], [3]]
    with pytest.raises(InputError, match="line 3: 'x' is not an id"):
        read(f"log.txt{suffix}", f"1 2{end}{end}3 x{end}4")


# Requests without a name


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "NULL", "null", "<NA>", r"\N", " ", '""'])
def test_rows_without_a_request_are_not_one_request(read: Read, name: str) -> None:
    text = f"request,id\na,1\n{name},2\n{name},3\nb,4\n"
    with pytest.raises(InputError, match=r"line 3: column 'request'.*every row needs its request"):
        read("log.csv", text)
    assert read("log.csv", text, bad_rows="skip") == [[1], [4]]
    if name.strip(' "'):
        assert read("log.csv", text, missing=()) == [[1], [2, 3], [4]]
        assert read("log.csv", text, missing=["a"], bad_rows="skip") == [[2, 3], [4]]


def test_names_that_only_begin_so_are_names(read: Read) -> None:
    assert read("log.csv", "request,id\nnancy,1\nNone such,2\nna,3\n") == [[1], [2], [3]]


# Times


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    "times",
    [
        ["2020-02-29 00:00:00 UTC", "2020-02-29 12:00:00.5 UTC", "2020-02-29T12:00:01utc"],
        ["2020-02-29 UTC", "2020-02-29 01:00 GMT", "2020-02-29 02:00:00Z"],
        ["2020-02-29 12:00:00 +0200", "2020-02-29 10:30:00", "2020-02-29 12:00:00 +00:00"],
        ["2020-02-29t12:00:00z", "2020-02-29 24:00:00", "2020-03-01 00:00:00.001"],
        ["1582848000.25", "1582848000.250000001", "1582848001"],
        ["-0.5", "0", ".5"],
        ["2000-02-29", "2004-02-29", "2100-02-28"],
    ],
)
def test_times(read: Read, times: list[str]) -> None:
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        rows = [f"a,{k},{times[k]}" for k in order]
        assert read("log.csv", "\n".join(["request,id,time", *rows])) == [[0, 1, 2]]


@pytest.mark.parametrize(
    "time",
    [
        "2020-02-31", "2019-02-29", "1900-02-29", "2020-04-31", "2020-00-10", "2020-01-00",
        "2020-02-29 24:00:01", "2020-02-29 12:60", "2020-02-29 12:00:00 CET", "2020-02-29 UTCX",
        "2020-02-29T", "2020-2-9", "1e9", "1.5.2", "nan", "inf", "--1", "1,5", "9" * 20,
    ],
)  # fmt: skip
def test_impossible_times(read: Read, time: str) -> None:
    text = f'request,id,time\na,1,"{time}"\n'
    with pytest.raises(InputError, match=r"line 2: .* in column 'time' is not a time"):
        read("log.csv", text)


# Ids


def test_whole_ids_with_a_point(read: Read) -> None:
    assert read("log.csv", "request,id\na,12.0\na,7.\na,0.000\na, 3.00 \n") == [[12, 7, 0, 3]]
    assert read("log.txt", "12.0 7,0.00\n3.\n") == [[12, 7, 0], [3]]


@pytest.mark.parametrize(
    "value",
    ["12.5", "-1", "-0.0", "1e3", "1.2e+07", "+5", "0x10", "1_000", "\uff11", "2147483648",
     "2147483648.0", "9223372036854775808",
     "18446744073709551616", "nan", "inf", ".", "5 6", "5.0.0"],
)  # fmt: skip
def test_what_is_no_id(read: Read, value: str) -> None:
    with pytest.raises(InputError, match=r"line 3: .* is not an id"):
        read("log.csv", f"request,id\na,1\na,{value}\n")
    with pytest.raises(InputError, match=r"line 1: .* is not an id"):
        read("log.txt", f"{value.replace(' ', '_')}\n")
    assert read("log.csv", f"request,id\na,1\na,{value}\n", bad_rows="skip") == [[1]]


# Bad rows


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("log.csv", "request,id\n1,5\nx\n,6\n1,y\n1,7,8\n1,9\n", "line 3"),
        ("log.tsv", "request\tid\n1\t5\nx\n\t6\n1\ty\n1\t7\t8\n1\t9\n", "line 3"),
        ("log.txt", "5\n-1\n6 x 7\n8.5\n\nuser: 1 2\n9\n", "line 2"),
        ("log.jsonl", '[5]\n{"x":\n[6,-1]\n7\n{"id":8}\n[9]\n', "line 2"),
    ],
)
def test_bad_rows_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, text: str, first: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=rf"{name}: {first}.*bad_rows='skip'"):
        AccessLog.read(path)
    with caplog.at_level(logging.WARNING, "bandana_kv"):
        log = AccessLog.read(path, bad_rows="skip")
    assert log.ids.tolist() == [5, 9]
    assert log.skipped_rows == 4
    assert "without 4 bad rows; the first:" in caplog.text
    assert first in caplog.text
    assert AccessLog.read(path, LogOptions(bad_rows="skip")).skipped_rows == 4


def test_nothing_but_bad_rows(read: Read) -> None:
    with pytest.raises(InputError, match=r"holds no requests.*2 bad rows were skipped.*line 2"):
        read("log.csv", "request,id\n1,x\n2,y\n", bad_rows="skip")


def test_bad_rows_are_one_of_two(read: Read) -> None:
    with pytest.raises(InputError, match="bad_rows is error or skip, not 'warn'"):
        read("log.csv", "request,id\n1,2\n", bad_rows="warn")


def test_skipped_rows_do_not_say_what_times_are(read: Read) -> None:
    text = "request,id,time\nnull,1,2020-01-01\na,2,5\na,3,4\n"
    assert read("log.csv", text, bad_rows="skip") == [[3, 2]]


@pytest.mark.parametrize(
    ("name", "text", "option", "message"),
    [
        ("log.txt", "1\n", {"columns": {"id": "x"}}, "no columns to name"),
        ("log.txt", "1\n", {"quoting": True}, "no quoting"),
        ("log.txt", "1\n", {"header": True}, "no header"),
        ("log.jsonl", "[1]\n", {"separator": ";"}, "no separator"),
        ("log.npz", "x", {"missing": ["x"]}, "no names of requests"),
        ("log.parquet", "x", {"header": False}, "no header"),
    ],
)
def test_options_that_a_format_does_not_have(
    read: Read, name: str, text: str, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(name, text, **option)


# JSON lines


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson", "log.jsonl.gz"])
def test_json_lines(read: Read, name: str) -> None:
    rows = '{"request":"b","id":1,"x":[]}\n{"id":2.0,"request":"a"}\n\n{"request":"b","id":3}'
    assert read(name, rows) == [[1, 3], [2]]
    assert read(name, '{"ids":[1,2],"time":5}\n{"ids":[3],"time":4.5}\n') == [[3], [1, 2]]
    assert read(name, '{"ids":[1,2]}\n{"ids":[]}\n{"ids":[2]}\n') == [[1, 2], [], [2]]
    assert read(name, "[1, 2]\n[2]\n") == [[1, 2], [2]]


def test_json_lines_with_named_columns(read: Read) -> None:
    text = (
        '{"user":7,"item":1,"at":"2020-01-02 UTC"}\n'
        '{"user":"7","item":2,"at":"2020-01-01T00:00:00Z"}\n'
        '{"user":7.0,"item":3,"at":"2020-01-01T00:00:01.5"}\n'
    )
    columns = {"request": "user", "id": "item", "time": "at"}
    assert read("log.jsonl", text, columns=columns) == [[2], [3, 1]]
    lists = '{"user":1,"items":[5,6]}\n{"user":2,"items":[7]}\n{"user":1,"items":[8]}\n'
    assert read("log.jsonl", lists, columns={"id": "items"}) == [[5, 6], [7], [8]]
    joined = read("log.jsonl", lists, columns={"id": "items", "request": "user"})
    assert joined == [[5, 6, 8], [7]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"request":1,"id":2.5}', "'2.5' in 'id' is not an id"),
        ('{"request":1,"id":-2}', "'-2' in 'id' is not an id"),
        ('{"request":1,"id":9223372036854775808}', "is not an id"),
        ('{"request":1,"id":36893488147419103232}', "is not an id"),
        ('{"request":1,"id":true}', "'true' in 'id' is not an id"),
        ('{"request":1,"id":null}', "'null' in 'id' is not an id"),
        ('{"request":1,"id":NaN}', "is not JSON"),
        ('{"request":null,"id":2}', "'null' in 'request' cannot name a request"),
        ('{"request":"None","id":2}', "means that there is none"),
        ('{"request":[1],"id":2}', "cannot name a request"),
        ('{"request":1}', "has no 'id'; what it has: 'request'"),
        ('{"id":1}', "has no 'request'"),
        ('{"request":1,"id":2', "is not JSON"),
        ("7", "neither an object nor the ids"),
        ("[[1]]", "is not an id"),
        ('{"ids":[1]}', "some lines are requests"),
        ('{"request":1,"id":2,"time":1}', "some lines have a time"),
        ('{"request":1,"id":2,"time":"2020-02-31"}', "is not a time"),
        ("[" * 100_000, "is not JSON"),
        ("\ud800", "is not JSON"),
    ],
)
def test_bad_lines_of_json(read: Read, line: str, message: str) -> None:
    text = ('{"request":1,"id":1}\n' + line + "\n").encode(errors="surrogatepass")
    with pytest.raises(InputError, match=f"line 2: .*{message}"):
        read("log.jsonl", text)
    assert read("log.jsonl", text, bad_rows="skip") == [[1]]


# Parquet


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


D = decimal.Decimal


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1, 2, 3], pa.uint64()),
        pa.array([1.0, 2.0, 3.0]),
        pa.array([1.0, 2.0, 3.0], pa.float32()),
        pa.array([D("1.00"), D("2.00"), D("3.00")]),
        pa.array([1, 2, 3]).dictionary_encode(),
        pa.array([1, 2, 3], pa.int8()),
    ],
    ids=lambda ids: str(ids.type),
)
def test_types_of_ids(tmp_path: Path, ids: Any) -> None:
    path = parquet(tmp_path / "log.parquet", request=["a", "b", "a"], id=ids)
    assert requests_of(AccessLog.read(path)) == [[1, 3], [2]]
    lists = pa.ListArray.from_arrays([0, 2, 3], ids.cast(ids.type))
    path = parquet(tmp_path / "lists.parquet", ids=lists)
    assert requests_of(AccessLog.read(path)) == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array([1, None, 3]), "row 1: column 'id' is null"),
        (pa.array([1.0, None, 3.0]), "row 1: column 'id' is null"),
        (pa.array([1.0, float("nan"), 3.0]), "row 1: column 'id' holds double nan"),
        (pa.array([1.0, 2.5, 3.0]), "row 1: column 'id' holds double 2.5"),
        (pa.array([1.0, 2.0**31, 3.0]), "row 1: column 'id' holds double 2147483648"),
        (pa.array([D(1), D("2.0000000000000000001"), D(3)]), "row 1: column 'id' holds decimal"),
        (pa.array([1, 2**64 - 1, 3], pa.uint64()), "column 'id' holds id 18446744073709551615"),
        (pa.array([1, -2, 3], pa.int8()), "row 1: column 'id' holds id -2"),
        (pa.array([1, None, 3]).dictionary_encode(), "row 1: column 'id' is null"),
    ],
    ids=lambda ids: str(getattr(ids, "type", "")),
)  # fmt: skip
def test_bad_ids_of_parquet(tmp_path: Path, ids: Any, message: str) -> None:
    path = parquet(tmp_path / "log.parquet", request=["a", "b", "a"], id=ids)
    with pytest.raises(InputError, match=message):
        AccessLog.read(path)
    log = AccessLog.read(path, bad_rows="skip")
    assert requests_of(log) == [[1, 3]]
    assert log.skipped_rows == 1


@pytest.mark.parametrize(
    "names",
    [
        pa.array([7.0, float("nan"), float("nan"), 8.5]),
        pa.array(["a", "nan", "None", "b"]),
        pa.array(["a", " NULL ", "NaN", "b"]).dictionary_encode(),
        pa.array(["a", None, None, "b"]),
    ],
    ids=lambda names: str(names.type),
)
def test_requests_of_parquet_without_a_name(tmp_path: Path, names: Any) -> None:
    path = parquet(tmp_path / "log.parquet", request=names, id=[1, 2, 3, 4])
    with pytest.raises(InputError, match="row 1: column 'request'"):
        AccessLog.read(path)
    log = AccessLog.read(path, bad_rows="skip")
    assert requests_of(log) == [[1], [4]]
    assert log.skipped_rows == 2


def test_bad_lists_of_parquet(tmp_path: Path) -> None:
    lists = [[1, 2], None, [3, None], [4, -5], [], [6]]
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int32())):
        path = parquet(tmp_path / "log.parquet", ids=pa.array(lists, kind))
        log = AccessLog.read(path, bad_rows="skip")
        assert requests_of(log) == [[1, 2], [], [6]]
        assert log.skipped_rows == 3
    pairs = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2))
    path = parquet(tmp_path / "log.parquet", ids=pairs)
    assert requests_of(AccessLog.read(path, bad_rows="skip")) == [[1, 2], [3, 4]]


def test_lists_of_parquet_come_by_time(tmp_path: Path) -> None:
    lists = pa.array([[1, 2], [3], [4, 5]])
    path = parquet(tmp_path / "log.parquet", ids=lists, time=[3, 1, 2], user=["a", "b", "a"])
    assert requests_of(AccessLog.read(path)) == [[3], [4, 5], [1, 2]]
    joined = AccessLog.read(path, columns={"request": "user"})
    assert requests_of(joined) == [[3], [4, 5, 1, 2]]
    with pytest.raises(InputError, match="has no column 'when'"):
        AccessLog.read(path, columns={"time": "when"})


TIMES = [
    pa.array([datetime(2020, 1, day, tzinfo=UTC) for day in (2, 1)], pa.timestamp("ns", "UTC")),
    pa.array([datetime(2020, 1, day) for day in (2, 1)], pa.timestamp("ms")),  # noqa: DTZ001
    pa.array([D("1582848000.25"), D("1582848000.24")]),
    pa.array([2.0, float("-1.5")], pa.float32()),
    pa.array([2, 1], pa.uint64()),
]


@pytest.mark.parametrize("times", TIMES, ids=lambda times: str(times.type))
def test_times_of_parquet(tmp_path: Path, times: Any) -> None:
    path = parquet(tmp_path / "log.parquet", request=["a", "b"], id=[1, 2], time=times)
    assert requests_of(AccessLog.read(path)) == [[2], [1]]


def test_times_of_parquet_that_are_missing(tmp_path: Path) -> None:
    for times in (pa.array([2.0, float("inf"), 1.0]), pa.array([2, None, 1], pa.timestamp("s"))):
        path = parquet(tmp_path / "log.parquet", request=list("abc"), id=[1, 2, 3], time=times)
        with pytest.raises(InputError, match="row 1: column 'time'"):
            AccessLog.read(path)
        assert requests_of(AccessLog.read(path, bad_rows="skip")) == [[3], [1]]


# Directories


def test_a_directory_of_parquet_files(tmp_path: Path) -> None:
    for part in range(12):
        ids = pa.array([part, part + 100])
        parquet(tmp_path / f"log/day={part}/part-0.parquet", request=["a", f"b{part}"], id=ids)
    for beside in ("_SUCCESS", ".part-0.parquet.crc", "_metadata"):
        (tmp_path / "log" / beside).write_bytes(b"x")
    log = AccessLog.read(tmp_path / "log")
    # part-2 before part-10; and request a goes on over all of them
    assert requests_of(log) == [list(range(12)), *([part + 100] for part in range(12))]


def test_a_directory_whose_files_name_requests_in_several_types(tmp_path: Path) -> None:
    parquet(tmp_path / "log/0.parquet", request=pa.array([1, 2], pa.int32()), id=[1, 2])
    parquet(tmp_path / "log/1.parquet", request=pa.array([1, 3], pa.uint64()), id=[3, 4])
    parquet(tmp_path / "log/2.parquet", request=[1.0, 2.0], id=[5, 6])
    parquet(tmp_path / "log/3.parquet", request=["1", "2"], id=[7, 8])
    assert requests_of(AccessLog.read(tmp_path / "log")) == [[1, 3, 5, 7], [2, 6, 8], [4]]


def test_a_directory_whose_files_have_times_in_several_units(tmp_path: Path) -> None:
    for k, (unit, day) in enumerate([("ms", 3), ("ns", 1), ("us", 2), ("s", 4)]):
        when = pa.array([datetime(2020, 1, day)], pa.timestamp(unit))  # noqa: DTZ001
        parquet(tmp_path / f"log/{k}.parquet", request=["a"], id=[day], time=when)
    assert requests_of(AccessLog.read(tmp_path / "log")) == [[1, 2, 3, 4]]
    parquet(tmp_path / "log/5.parquet", request=["a"], id=[5], time=[7])
    with pytest.raises(InputError, match="numbers and dates are mixed"):
        AccessLog.read(tmp_path / "log")


def test_a_directory_of_mixed_files(tmp_path: Path) -> None:
    parquet(tmp_path / "log/0.parquet", request=["a"], id=[1])
    (tmp_path / "log/notes.csv").write_text("request,id\n")
    with pytest.raises(InputError, match=r"notes\.csv: lies among Parquet files and is none"):
        AccessLog.read(tmp_path / "log")
    (tmp_path / "log/notes.csv").unlink()
    parquet(tmp_path / "log/1.parquet", ids=[[1]])
    with pytest.raises(InputError, match=r"1\.parquet: its rows name requests.*read them apart"):
        AccessLog.read(tmp_path / "log")
    (tmp_path / "log/1.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"1\.parquet: not a complete Parquet file"):
        AccessLog.read(tmp_path / "log")


def test_files_without_a_suffix_are_parquet_if_it_is_said(tmp_path: Path) -> None:
    parquet(tmp_path / "log/000000_0", request=["a"], id=[1])
    with pytest.raises(InputError, match="a directory without a recording or Parquet files"):
        AccessLog.read(tmp_path / "log")
    assert requests_of(AccessLog.read(tmp_path / "log", format="parquet")) == [[1]]


def test_skipped_rows_of_a_directory_are_counted_together(tmp_path: Path) -> None:
    for k in range(3):
        parquet(tmp_path / f"log/{k}.parquet", request=["a", None], id=[k, k])
    log = AccessLog.read(tmp_path / "log", bad_rows="skip")
    assert requests_of(log) == [[0, 1, 2]]
    assert log.skipped_rows == 3


def test_options_and_keywords_go_together(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u;i\na;1\na;x\n")
    options = LogOptions(separator=";", columns={"request": "u", "id": "i"})
    with pytest.raises(InputError, match="'x' in column 'i'"):
        AccessLog.read(path, options)
    assert requests_of(AccessLog.read(path, options, bad_rows="skip")) == [[1]]
    assert np.array_equal(AccessLog.read(path, options, bad_rows="skip").offsets, [0, 1])
