"""The book of variants outlives restarts, and says what is wrong with it by its name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.catalogue import Catalogue
from serving.errors import ConfigurationError, InvalidRequestError
from serving.variant_book import VariantBook, checked_name

CATALOGUE = Catalogue(("a", "ü"), ("A film", ""), (("drama",), ()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "variants.json"


def checkpoint(folder: Path, text: str | None = None) -> Path:
    folder.mkdir()
    (folder / "catalogue.json").write_text(CATALOGUE.to_json() if text is None else text, encoding="utf-8")
    return folder


def test_a_new_book_is_empty(path: Path) -> None:
    assert VariantBook(path).read() == {}


def test_variants_are_there_after_a_restart_by_their_full_paths(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    VariantBook(path).add({"bf16": Path("models/bf16"), "fp8": tmp_path / "fp8"})
    monkeypatch.chdir("/")
    assert VariantBook(path).read() == {"bf16": tmp_path / "models/bf16", "fp8": tmp_path / "fp8"}


def test_adding_keeps_the_others_and_replaces_the_same_name(path: Path, tmp_path: Path) -> None:
    book = VariantBook(path)
    book.add({"bf16": tmp_path / "1", "fp8": tmp_path / "2"})
    book.add({"fp8": tmp_path / "3"})
    assert book.read() == {"bf16": tmp_path / "1", "fp8": tmp_path / "3"}
    assert [found.name for found in path.parent.iterdir()] == ["variants.json", "variants.lock"], (
        "nothing half-written stays"
    )


def test_two_gateways_that_add_at_once_lose_nothing(path: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from serving.variant_book import VariantBook\n"
        "print(flush=True); sys.stdin.readline()\n"
        "for number in range(300): VariantBook(Path(sys.argv[1])).add({f'{sys.argv[2]}{number}': Path('/tmp')})"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()  # it has imported what it needs
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert set(VariantBook(path).read()) == {f"{name}{number}" for name in ("a", "b") for number in range(300)}


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', '{"fp8": 3}', '{"fp8": null}', "\udcff"])
def test_a_file_that_is_no_book_is_refused_by_its_name(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"variants\.json"):
        VariantBook(path).read()


def test_the_catalogue_is_that_of_the_checkpoint(path: Path, tmp_path: Path) -> None:
    book = VariantBook(path)
    book.add({"bf16": checkpoint(tmp_path / "bf16")})
    assert book.catalogue("bf16").ids == CATALOGUE.ids


def test_an_unknown_default_variant_is_named(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"default_variant.*'bf16'"):
        VariantBook(path).catalogue("bf16")


@pytest.mark.parametrize("text", ["", "{", "{}", json.dumps({"ids": [], "titles": [], "genres": []}), '{"ids": 3}'])
def test_a_damaged_catalogue_is_a_wrong_setting_that_names_its_variant(path: Path, tmp_path: Path, text: str) -> None:
    book = VariantBook(path)
    book.add({"bf16": checkpoint(tmp_path / "bf16", text)})
    with pytest.raises(ConfigurationError, match="'bf16'"):
        book.catalogue("bf16")


def test_a_checkpoint_that_is_gone_is_a_wrong_setting_that_names_its_variant(path: Path, tmp_path: Path) -> None:
    book = VariantBook(path)
    book.add({"bf16": tmp_path / "gone"})
    with pytest.raises(ConfigurationError, match="'bf16'"):
        book.catalogue("bf16")


@pytest.mark.parametrize("name", ["fp8", "0", "a.b-c_d", "x" * 64])
def test_names_that_may_be_part_of_a_path(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "_x", "A", "a/b", "a b", "a\n", "ü", "x" * 65, "a%2f"])
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        checked_name(name)
    assert caught.value.field == "name"
