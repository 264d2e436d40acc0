"""Access logs in .txt, .csv and .tsv: what is read, and what is refused where."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.formats import pieces
from bandana_kv.progress import Progress


def read(tmp_path: Path, name: str, text: str | bytes, **options: object) -> list[list[int]]:
    data = text.encode() if isinstance(text, str) else text
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    log = AccessLog.read(tmp_path / name, **options)  # type: ignore[arg-type]
    return [log.request(number).tolist() for number in range(log.requests)]


@pytest.fixture(params=[1, 7, 1 << 20], ids=lambda size: f"blocks of {size}")
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that every line is cut somewhere."""
    monkeypatch.setattr(pieces, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("name", ["log.txt", "log.txt.gz", "LOG.TXT"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2 3\n4\n", [[1, 2, 3], [4]]),
        ("1,2, 3\n4", [[1, 2, 3], [4]]),
        ("1\t2\r\n\r\n\n 4 \r\n", [[1, 2], [4]]),
        ("\n\n2147483647 0 007", [[2147483647, 0, 7]]),
        ("\ufeff5\n", [[5]]),
    ],
)
def test_text(tmp_path: Path, name: str, text: str, expected: list[list[int]]) -> None:
    assert read(tmp_path, name, text) == expected


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n\n3 4x 5\n", "line 3: '4x' is not an id"),
        ("1 2\n-3\n", "line 2: '-3' is not an id"),
        ("1.5\n", "line 1: '1.5' is not an id"),
        ("1\n2147483648\n", "line 2: '2147483648' is not an id"),
        ("1\n99999999999999999999999\n", "line 2: '9999999999999999999"),
        ("user: 1 2", "line 1: 'user:' is not an id"),
        ("1\n\x00\n", r"line 2: '\\x00' is not an id"),
        ("\n \n", "holds no requests"),
    ],
)
def test_text_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, "log.txt", text)


def test_text_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no columns to name"):
        read(tmp_path, "log.txt", "1\n", columns={"id": "x"})


TABLE = "request,id\nb,10\na,11\nb,12\nc,13\na,11\n"
GROUPED = [[10, 12], [11, 11], [13]]


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        TABLE.rstrip("\n"),
        TABLE.replace("\n", "\r\n"),
        "\ufeff" + TABLE,
        TABLE.replace("\n", "\n\n", 3).replace("request,id\n\n", "request,id\n"),
        TABLE.replace("b,", '"b",').replace("11", '"11"').replace("13", " 13 "),
        "\n".join(f'"x, ""y""\nz",{line},more' for line in TABLE.splitlines()).replace(
            '"x, ""y""\nz",request', "note,request"
        ),
    ],
)
def test_csv(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "log.csv", text) == GROUPED
    assert read(tmp_path, "log.csv.gz", text) == GROUPED


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz"])
def test_tsv(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name, TABLE.replace(",", "\t")) == GROUPED


def test_format_overrides_the_suffix(tmp_path: Path) -> None:
    assert read(tmp_path, "log.dat", TABLE, format="csv") == GROUPED


def test_named_columns(tmp_path: Path) -> None:
    text = "item,ts,user\n1,5,a\n2,3,b\n3,4,a\n"
    names = {"request": "user", "id": "item"}
    assert read(tmp_path, "log.csv", text, columns=names) == [[1, 3], [2]]
    assert read(tmp_path, "log.csv", text, columns=names | {"time": "ts"}) == [[2], [3, 1]]


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    "times",
    [
        ["1", "2", "3", "4", "5"],
        ["-10", "-2.5", "-2.25", "0.125", "9"],
        ["1506826800000000001", "1506826800000000002", *[f"150682680000000000{k}" for k in "345"]],
        ["1.000000001", "1.000000002", "1.1", "1.12", "2"],
        ["2017-10-01", "2017-10-02", "2018-01-01", "2020-02-29", "2020-03-01"],
        [
            "2017-10-01T02:37",
            "2017-10-01 02:37:01",
            "2017-10-01T02:37:01.5Z",
            "2017-10-01T00:37:02-0200",
            "2017-10-01T05:07:03+02:30",
        ],
        ["1969-12-31T23:59:59", "1970-01-01", "1970-01-01T01:00:01+01", "1999-12-31", "2000-01-01"],
    ],
)
def test_times(tmp_path: Path, rng: np.random.Generator, times: list[str]) -> None:
    """Interactions come in the order of time, whatever order they are written in."""
    who = ["b", "a", "b", "c", "a"]
    for _ in range(5):
        lines = [f"{who[k]},{k},{times[k]}" for k in rng.permutation(5)]
        text = "\n".join(["request,id,time", *lines])
        assert read(tmp_path, "log.csv", text) == [[0, 2], [1, 4], [3]]


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    text = "request,id,time\nb,3,1\na,2,1\nb,1,1\nc,0,0\n"
    assert read(tmp_path, "log.csv", text) == [[0], [3, 1], [2]]


@pytest.mark.usefixtures("block_bytes")
def test_many_and_long_requests_grow_the_tables(tmp_path: Path) -> None:
    names = [f"{'long name ' * (k % 7)}{k}" for k in range(6000)]
    text = "request,id\n" + "".join(f"{name},{k}\n" for k, name in enumerate(names * 2))
    assert read(tmp_path, "log.csv", text) == [[k, k + 6000] for k in range(6000)]
    long = "x" * 200_000
    assert read(tmp_path, "log.csv", f"request,id\n{long},1\n{long}y,2\n{long},3\n") == [
        [1, 3],
        [2],
    ]


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\n1,2\n", r"no column 'request'; its columns: 'user', 'item'"),
        ("request,item\n1,2\n", r"no column 'id'; its columns: 'request', 'item'. Say which"),
        ("request,id,id\n1,2,3\n", "two columns are named 'id'"),
        ("\nrequest,id\n", "begins with an empty line"),
        ("request,id\n", "holds no requests"),
        ("request,id", "holds no requests"),
        ("request,id\n1,2\n\n3\n", "line 4: the row ends before column 'id'"),
        ("request,id\n1,2\n3,\n", "line 3: '' in column 'id' is not an id"),
        ("request,id\n1,2\n3,4.5\n", "line 3: '4.5' in column 'id' is not an id"),
        ("request,id\n1,-2\n", "line 2: '-2' in column 'id' is not an id"),
        ("request,id\n1,2147483648\n", "line 2: '2147483648' in column 'id' is not an id"),
        ("request,id\n1,2\n,3\n", "line 3: column 'request' is empty"),
        ('request,id\n"a\nb",2\n"c"d,3\n', "line 4: text follows a closing quote"),
        ('request,id\n1,2\n"c,3\n', "line 3: a quote opens there that is never closed"),
        ("request,id,time\n1,2,soon\n", "line 2: 'soon' in column 'time' is not a time"),
        ("request,id,time\n1,2,\n", "line 2: '' in column 'time' is not a time"),
        ("request,id,time\n1,2,-\n", "line 2: '-' in column 'time' is not a time"),
        ("request,id,time\n1,2,1e9\n", "line 2: '1e9' in column 'time' is not a time"),
        ("request,id,time\n1,2,2017-13-01\n", "'2017-13-01' in column 'time' is not a time"),
        ("request,id,time\n1,2,2017-10-01T25:00\n", "is not a time"),
        ("request,id,time\n1,2,2017-10-01T05:00+1\n", "is not a time"),
        ("request,id,time\n1,2,3\n1,2,2017-10-01\n", "line 3: .* numbers and dates are mixed"),
    ],
)
def test_csv_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, "log.csv", text)
    assert str(tmp_path / "log.csv") in str(caught.value)


def test_csv_columns_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="columns names 'user'; it can name request, id, time"):
        read(tmp_path, "log.csv", TABLE, columns={"user": "request"})
    with pytest.raises(InputError, match="no column 'when'"):
        read(tmp_path, "log.csv", TABLE, columns={"time": "when"})
    with pytest.raises(InputError, match="line 1 is not UTF-8"):
        read(tmp_path, "log.csv", b"request,id,\xff\n1,2,3\n")


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "log.txt.gz"
    whole = gzip.compress(b"1 2 3\n" * 1000)
    flipped = bytearray(whole)
    flipped[-8] ^= 1  # the checksum
    for data in (whole[: len(whole) // 2], whole[:5], bytes(flipped), b"1 2 3\n"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged gzip"):
            AccessLog.read(path)


@pytest.mark.parametrize("name", ["log.npz", "log.parquet", "log.csv", "log.txt", "log.csv.gz"])
def test_missing_empty_or_a_directory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match=f"{name}: no such file"):
        AccessLog.read(path)
    path.touch()
    with pytest.raises(InputError, match=f"{name}: the file is empty"):
        AccessLog.read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=f"{name}: is a directory"):
        AccessLog.read(path)


def test_unknown_formats(tmp_path: Path) -> None:
    known = (
        r"there are \.npz, \.parquet, \.csv, \.tsv, \.txt, \.jsonl; "
        r"\.gz behind \.csv, \.tsv, \.txt, \.jsonl$"
    )
    with pytest.raises(InputError, match=rf"log\.json: its suffix says no format; {known}"):
        AccessLog.read(tmp_path / "log.json")
    with pytest.raises(InputError, match=rf"no log format 'xml'; {known}"):
        AccessLog.read(tmp_path / "log.npz", format="xml")


def test_progress_adds_up(tmp_path: Path) -> None:
    class Total(Progress):
        total = done = 0
        finished = False

        def start(self, label: str, total: int, unit: str) -> None:
            self.total = total

        def advance(self, count: int) -> None:
            self.done += count

        def finish(self) -> None:
            self.finished = True

    seen = Total()
    read(tmp_path, "log.csv.gz", TABLE, progress=seen)
    assert seen.done == seen.total == (tmp_path / "log.csv.gz").stat().st_size
    assert seen.finished
