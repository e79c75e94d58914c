from __future__ import annotations

import json

import pytest

from model.catalogue import Catalogue
from model.errors import CheckpointError, ModelError

BOOKS = Catalogue(("a", "ß"), ("Anna", ""), (("novel",), ()))


def test_catalogue_round_trips_and_translates() -> None:
    again = Catalogue.from_json(BOOKS.to_json())
    assert (again.ids, again.titles, again.genres) == (BOOKS.ids, BOOKS.titles, BOOKS.genres)
    assert again.indices(["ß", "a"]) == [1, 0]
    assert again.title("ß") == "ß"
    assert "a" in again
    assert "b" not in again
    assert len(again) == 2


def test_catalogue_names_the_unknown_item() -> None:
    with pytest.raises(ModelError, match="unknown item 'zzz'"):
        BOOKS.indices(["a", "zzz"])


@pytest.mark.parametrize(
    ("ids", "titles"), [((), ()), (("a", "a"), ("", "")), (("a",), ("", ""))], ids=["empty", "twice", "lengths"]
)
def test_catalogue_impossible_content_is_refused(ids: tuple[str, ...], titles: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="catalogue"):
        Catalogue(ids, titles, tuple(() for _ in ids))


@pytest.mark.parametrize(
    "text", ["[]", "{", json.dumps({"ids": [1], "titles": [""], "genres": [[]]}), json.dumps({"ids": ["a"]})]
)
def test_catalogue_foreign_json_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"catalogue\.json"):
        Catalogue.from_json(text)
