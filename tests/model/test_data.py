from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data import Row, from_rows, load_interactions
from model.errors import DataError

GOOD = "user_id,item_id,timestamp,value\nb,x,20,1.5\na,y,10,\na,x,10,2\n"


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_is_sorted_by_time_and_keeps_the_file_order_of_ties(tmp_path: Path) -> None:
    data = load_interactions(_write(tmp_path / "a.csv", GOOD))
    read = [(data.users[u], data.items[i]) for u, i in zip(data.user, data.item, strict=True)]
    assert read == [("a", "y"), ("a", "x"), ("b", "x")]
    assert data.timestamp.tolist() == [10.0, 10.0, 20.0]
    assert math.isnan(data.value[0])
    assert data.value[1:].tolist() == [2.0, 1.5]
    assert data.titles == ("", "")


def test_csv_iso_timestamps_count_as_utc_without_an_offset(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\na,x,1970-01-01T00:01:00\na,y,1970-01-01T01:00:30+01:00\n"
    assert load_interactions(_write(tmp_path / "a.csv", text)).timestamp.tolist() == [30.0, 60.0]


def test_csv_with_byte_order_mark_and_spaced_header_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "\ufeffuser_id, item_id, timestamp\na,x,1\n")
    assert load_interactions(path).users == ("a",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("user_id,item_id,timestamp\n", "no rows"),
        ("user_id,timestamp\na,1\n", "missing column 'item_id'"),
        ("user_id,item_id,timestamp\na,x,1\na,y,soon\n", "line 3: timestamp 'soon'"),
        ("user_id,item_id,timestamp\n,x,1\n", "line 2: user_id is empty"),
        ("user_id,item_id,timestamp\na, ,1\n", "line 2: item_id is empty"),
        ("user_id,item_id,timestamp,value\na,x,1,much\n", "line 2: value 'much'"),
        ("user_id,item_id,timestamp\na,x,nan\n", "line 2: timestamp 'nan'"),
        ("user_id,item_id,timestamp\na,x\n", "line 2: timestamp None"),
    ],
)
def test_csv_bad_content_is_refused_with_place_and_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = _write(tmp_path / "bad.csv", text)
    with pytest.raises(DataError, match=reason) as caught:
        load_interactions(path)
    assert str(path) in str(caught.value)


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_interactions(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"expected a \.csv"):
        load_interactions(_write(tmp_path / "a.json", "{}"))
    with pytest.raises(DataError, match="not a readable Parquet"):
        load_interactions(_write(tmp_path / "a.parquet", "nonsense"))
    (tmp_path / "latin.csv").write_bytes(b"user_id,item_id,timestamp\n\xff,x,1\n")
    with pytest.raises(DataError, match="not a readable CSV"):
        load_interactions(tmp_path / "latin.csv")


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    table = pa.table({"user_id": [2, 1], "item_id": ["x", "y"], "timestamp": [20, 10], "value": [None, 3.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    data = load_interactions(tmp_path / "a.parquet")
    assert [data.users[u] for u in data.user] == ["1", "2"]
    assert data.timestamp.tolist() == [10.0, 20.0]


def test_parquet_missing_column_and_bad_row_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": [1], "item_id": [2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="missing column 'timestamp'"):
        load_interactions(tmp_path / "a.parquet")
    pq.write_table(pa.table({"user_id": [1, 1], "item_id": [2, None], "timestamp": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="row 2: item_id is empty"):
        load_interactions(tmp_path / "b.parquet")


def test_from_rows_adds_items_known_only_by_title() -> None:
    data = from_rows([Row("a", "x", 1.0, 1.0)], {"y": "Why"}, {"y": ("odd",)})
    assert data.items == ("x", "y")
    assert data.titles == ("", "Why")
    assert data.genres == ((), ("odd",))


def test_from_rows_gives_each_user_a_profile_and_strangers_none() -> None:
    rows = [Row("b", "x", 2.0, 1.0), Row("a", "x", 1.0, 1.0)]
    data = from_rows(rows, profiles={"a": {"gender": "F"}, "c": {"gender": "M"}})
    assert data.users == ("b", "a")
    assert data.profiles == ({}, {"gender": "F"})
    assert from_rows(rows).profiles == ()
