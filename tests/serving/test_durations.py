from __future__ import annotations

from pathlib import Path

import pytest

from serving.durations import load_durations
from serving.errors import ConfigurationError


def _file(folder: Path, text: str) -> Path:
    path = folder / "durations.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_durations_are_read_whatever_other_columns_there_are(tmp_path: Path) -> None:
    found = load_durations(_file(tmp_path, "\ufeffitem_id,title,duration_s\n50, Alien ,12.5\n ü7 ,x,3\n"))
    assert found == {"50": 12.5, "ü7": 3.0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("item_id\n50\n", "duration_s"),
        ("duration_s\n50\n", "item_id"),
        ("", "item_id"),
        ("item_id,duration_s\n50,1\n,2\n", "line 3: item_id"),
        ("item_id,duration_s\n50,long\n", "line 2: duration_s 'long'"),
        ("item_id,duration_s\n50\n", "line 2: duration_s"),
        ("item_id,duration_s\n50,0\n", "above 0"),
        ("item_id,duration_s\n50,inf\n", "above 0"),
    ],
)
def test_what_is_no_duration_is_refused_with_its_line(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load_durations(_file(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.csv"):
        load_durations(tmp_path / "nowhere.csv")
