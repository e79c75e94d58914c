"""A wheel without what its user never loads: folders taken out, compiled files without symbols, RECORD made anew."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

_ELF = b"\x7fELF"
_STAMP = (1980, 1, 1, 0, 0, 0)


def slimmed(wheel: Path, drop: Sequence[str]) -> None:
    """Rewrite a wheel in place without the folders `drop`, and without symbols where `strip` is installed.

    Names and modes stay; the same wheel gives the same bytes. Raises ValueError for a folder that the wheel lacks,
    for then nobody knows any longer what was taken out.
    """
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / wheel.name
        with (
            zipfile.ZipFile(wheel) as source,
            zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out,
        ):
            names = [entry.filename for entry in source.infolist()]
            missing = [folder for folder in drop if not any(_under(name, folder) for name in names)]
            if missing:
                raise ValueError(f"{wheel.name}: has no folder {missing[0]!r}")
            record, lines = _record_of(names), []
            for entry in source.infolist():
                name = entry.filename
                if entry.is_dir() or name == record or any(_under(name, folder) for folder in drop):
                    continue
                content = _without_symbols(source.read(entry), Path(scratch))
                _write(out, name, content, entry.external_attr)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                lines.append(f"{_quoted(name)},sha256={digest},{len(content)}")
            _write(out, record, "\n".join([*lines, f"{record},,", ""]).encode(), 0o644 << 16)
        shutil.move(fresh, wheel)


def _under(name: str, folder: str) -> bool:
    return name.startswith(folder.rstrip("/") + "/")


def _record_of(names: Sequence[str]) -> str:
    return next(name for name in names if name.endswith(".dist-info/RECORD"))


def _quoted(name: str) -> str:
    """RECORD is a CSV file."""
    return '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name


def _without_symbols(content: bytes, scratch: Path) -> bytes:
    """The content itself unless it is an ELF file that `strip` can make smaller."""
    if not content.startswith(_ELF) or shutil.which("strip") is None:
        return content
    path = scratch / "elf"
    path.write_bytes(content)
    done = subprocess.run(["strip", "--strip-unneeded", str(path)], check=False, stderr=subprocess.DEVNULL)
    return path.read_bytes() if done.returncode == 0 else content


def _write(out: zipfile.ZipFile, name: str, content: bytes, attributes: int) -> None:
    entry = zipfile.ZipInfo(name, _STAMP)
    entry.external_attr, entry.compress_type = attributes, zipfile.ZIP_DEFLATED
    out.writestr(entry, content)
