from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from model import movielens
from model.errors import DataError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t5\t20\n2\t11\t3\t10\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "10\tHeat\t1995\tAction Crime\n11\tOld\t\tDrama\n"
)

USER = (
    "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "1\t24\tM\twriter\t85711\n2\t56\tF\tother\t9\n"
)


def _wheel(folder: Path, inter: str = INTER) -> None:
    with zipfile.ZipFile(folder / movielens.WHEEL, "w") as archive:
        archive.writestr(movielens.FOLDER + "ml-100k.inter", inter)
        archive.writestr(movielens.FOLDER + "ml-100k.item", ITEM)
        archive.writestr(movielens.FOLDER + "ml-100k.user", USER)


@pytest.fixture
def expected_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {
        "ml-100k.inter": hashlib.sha256(INTER.encode()).hexdigest(),
        "ml-100k.item": hashlib.sha256(ITEM.encode()).hexdigest(),
        "ml-100k.user": hashlib.sha256(USER.encode()).hexdigest(),
    }
    monkeypatch.setattr(movielens, "DIGESTS", digests)


@pytest.mark.usefixtures("expected_digests")
def test_fetch_reads_a_cached_wheel_and_then_the_cached_folder(tmp_path: Path) -> None:
    _wheel(tmp_path)
    said: list[str] = []
    folder = movielens.fetch_movielens(tmp_path, said.append)
    data = movielens.load_movielens(folder)
    assert data.items == ("10", "11")
    assert data.titles == ("Heat (1995)", "Old")
    assert [data.users[user] for user in data.user] == ["2", "1"]
    assert data.genres == (("Action", "Crime"), ("Drama",))
    assert data.users == ("1", "2")
    assert data.profiles == (
        {"age": "18-24", "gender": "M", "occupation": "writer"},
        {"age": "56+", "gender": "F", "occupation": "other"},
    )
    (tmp_path / movielens.WHEEL).unlink()
    assert movielens.fetch_movielens(tmp_path, said.append) == folder
    assert said == ["MovieLens-100K: ready", "MovieLens-100K: cached"]


@pytest.mark.usefixtures("expected_digests")
def test_fetch_completes_a_cache_from_before_there_were_profiles(tmp_path: Path) -> None:
    _wheel(tmp_path)
    folder = movielens.fetch_movielens(tmp_path)
    (folder / "ml-100k.user").unlink()
    assert (movielens.fetch_movielens(tmp_path) / "ml-100k.user").is_file()


@pytest.mark.usefixtures("expected_digests")
def test_fetch_goes_on_without_profiles_where_the_wheel_is_gone(tmp_path: Path) -> None:
    _wheel(tmp_path)
    folder = movielens.fetch_movielens(tmp_path)
    (folder / "ml-100k.user").unlink()
    (tmp_path / movielens.WHEEL).unlink()
    said: list[str] = []
    assert movielens.fetch_movielens(tmp_path, said.append) == folder
    assert said == ["MovieLens-100K: cached"]
    assert movielens.load_movielens(folder).profiles == ()


@pytest.mark.parametrize(("age", "band"), [(7, "under 18"), (18, "18-24"), (34, "25-34"), (55, "50-55"), (73, "56+")])
def test_age_bands_begin_where_their_name_says(age: int, band: str) -> None:
    assert movielens.age_band(age) == band


@pytest.mark.usefixtures("expected_digests")
def test_fetch_refuses_content_of_another_digest(tmp_path: Path) -> None:
    _wheel(tmp_path, INTER.replace("5", "4"))
    with pytest.raises(DataError, match=r"ml-100k\.inter has sha256"):
        movielens.fetch_movielens(tmp_path)
    assert not (tmp_path / "ml-100k").exists()


@pytest.mark.usefixtures("expected_digests")
def test_fetch_refuses_a_cached_file_that_was_changed(tmp_path: Path) -> None:
    _wheel(tmp_path)
    folder = movielens.fetch_movielens(tmp_path)
    (folder / "ml-100k.item").write_text("other", encoding="utf-8")
    with pytest.raises(DataError, match=r"ml-100k\.item has sha256"):
        movielens.fetch_movielens(tmp_path)


def test_fetch_refuses_a_broken_wheel(tmp_path: Path) -> None:
    (tmp_path / movielens.WHEEL).write_bytes(b"not a zip")
    with pytest.raises(DataError, match="not the expected wheel"):
        movielens.fetch_movielens(tmp_path)


def test_fetch_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(DataError, match=r"cannot download recbole==1\.2\.1.*put recbole-1\.2\.1.* into"):
        movielens.fetch_movielens(tmp_path)
