"""Request ids: only what this service issued to this user is genuine, whatever else is sent."""

from __future__ import annotations

import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.errors import ConfigurationError, UnknownRequestError
from serving.request_id import RequestSigner, load_secret, uuid7

NOW = datetime(2026, 11, 23, 12, 0, 0, 123000, tzinfo=UTC)


@pytest.fixture
def signer() -> RequestSigner:
    return RequestSigner(b"k" * 32)


def test_an_issued_id_is_genuine_for_its_user_and_tells_when_it_was_issued(signer: RequestSigner) -> None:
    assert signer.verify(signer.issue("ann", NOW), "ann") == NOW


def test_gateways_that_share_the_secret_know_each_others_ids(signer: RequestSigner) -> None:
    assert RequestSigner(b"k" * 32).verify(signer.issue("ann", NOW), "ann") == NOW
    with pytest.raises(UnknownRequestError):
        RequestSigner(b"j" * 32).verify(signer.issue("ann", NOW), "ann")


@pytest.mark.parametrize("user", ["", "bob", "ann ", "Ann", "ann\0", "ann\ud83d"])
def test_an_id_of_somebody_else_is_refused(signer: RequestSigner, user: str) -> None:
    with pytest.raises(UnknownRequestError):
        signer.verify(signer.issue("ann", NOW), user)


@pytest.mark.parametrize("user", ["ann", "ünï ☃", "a\0b", "a.b", "x" * 256, "half \ud83d"])
def test_whatever_a_user_is_called_only_their_own_id_is_genuine(signer: RequestSigner, user: str) -> None:
    issued = signer.issue(user, NOW)
    assert signer.verify(issued, user) == NOW
    with pytest.raises(UnknownRequestError):
        signer.verify(issued, user + "x")


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "abc", "\ud83d", "☃.☃", "\0", "0" * 32, f"{'0' * 32}.", f".{'A' * 20}", f"{'0' * 32}.{'A' * 20}"],
)
def test_text_that_nobody_issued_is_refused(signer: RequestSigner, text: str) -> None:
    with pytest.raises(UnknownRequestError):
        signer.verify(text, "ann")


def test_every_shortened_lengthened_or_changed_id_is_refused(signer: RequestSigner) -> None:
    issued = signer.issue("ann", NOW)
    changed = [issued[:end] for end in range(len(issued))] + [issued[start:] for start in range(1, len(issued))]
    changed += [issued[:at] + ("0" if issued[at] != "0" else "1") + issued[at + 1 :] for at in range(len(issued))]
    changed += [issued + extra for extra in ("=", " ", ".", "A", "\n")] + [issued.upper(), f" {issued}"]
    for text in changed:
        with pytest.raises(UnknownRequestError):
            signer.verify(text, "ann")


def test_a_user_id_with_nul_cannot_lend_its_signature_to_another_user(signer: RequestSigner) -> None:
    name, _, signature = signer.issue("eve\0ann", NOW).partition(".")
    with pytest.raises(UnknownRequestError):
        signer.verify(f"{name}\0eve.{signature}", "ann")


def test_another_spelling_of_the_same_uuid_is_refused(signer: RequestSigner) -> None:
    name, _, signature = signer.issue("ann", NOW).partition(".")
    for spelling in (str(uuid.UUID(name)), f"{{{name}}}", f"urn:uuid:{name}"):
        with pytest.raises(UnknownRequestError):
            signer.verify(f"{spelling}.{signature}", "ann")


def test_uuid7_has_the_version_and_variant_of_the_standard_and_its_example() -> None:
    example = uuid7(datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC), bytes.fromhex("0cc318c4dc0c0c07398f"))
    assert str(example) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"  # RFC 9562, appendix A.6
    assert (example.version, example.variant) == (7, uuid.RFC_4122)
    assert uuid7(NOW, b"\xff" * 10).version == 7


def test_ids_sort_by_the_millisecond_of_their_issue(signer: RequestSigner) -> None:
    issued = [signer.issue(f"user{n}", NOW + timedelta(milliseconds=n)) for n in range(50)]
    assert issued == sorted(issued)
    assert len({signer.issue("ann", NOW) for _ in range(1000)}) == 1000


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="secret: needs at least 32 bytes, got 31"):
        RequestSigner(b"k" * 31)


def test_the_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "home" / "secret"
    first = load_secret(path)
    assert len(first) == 32
    assert load_secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_secret(tmp_path / "other") != first


def test_processes_that_start_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    for attempt in range(20):
        path = tmp_path / str(attempt) / "secret"
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(lambda _, path=path: load_secret(path), range(8)))) == 1


@pytest.mark.parametrize("text", ["not hexadecimal", "abc", "ü"])
def test_a_damaged_secret_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    with pytest.raises(ConfigurationError, match="secret"):
        load_secret(tmp_path / "secret")
