"""The rows of the ablations, kept in a file after each one, and their tables in Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from provenance import this_setting

Row = dict[str, float]
CONTEXT = "Pathways"

COLUMNS: dict[str, tuple[str, str]] = {
    "nats": ("-log p(test item), nats", "{:.3f}"),
    "validation_nats": ("-log p(validation item), nats", "{:.3f}"),
    "seeds_apart": ("between the seeds", "{:.3f}"),
    "hr": ("HR@10", "{:.4f}"),
    "ndcg": ("NDCG@10", "{:.4f}"),
    "coverage": ("catalogue shown", "{:.1%}"),
    "illegal_top10": ("illegal of the top 10", "{:.1%}"),
    "illegal_beam": ("illegal of the beam", "{:.1%}"),
    "parameters": ("parameters", "{:,.0f}"),
    "mflop": ("MFLOP a sample", "{:.2f}"),
    "kv_values": ("context values an item", "{:.0f}"),
    "items": ("most items in the context", "{:.0f}"),
    "ms": ("ms of computing a request", "{:.1f}"),
}
TITLES = {
    "Lkv": "Context key/value sets (Lkv) and values of their own (S=2)",
    "G": "Key/value heads of the cross attention (G; 4 query heads)",
    "codes": "Semantic ids: levels × codes",
    "beam": "Beam width",
    "trie": "Without the trie of valid items",
    CONTEXT: "Pathways of the context (`tiny` trained in full, means of two seeds, validation items)",
}


def markdown(tables: dict[str, dict[str, Row]], made: dict[str, dict[str, str]], note: str) -> str:
    """All tables that there are, and what each was made with."""
    lines = ["# Ablations of OneRec-V2 on MovieLens-100K", "", note]
    for name, rows in tables.items():
        columns = [column for column in COLUMNS if column in next(iter(rows.values()))]
        lines += ["", f"## {TITLES[name]}", "", "| | " + " | ".join(COLUMNS[column][0] for column in columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for label, row in rows.items():
            lines.append(
                f"| {label} | " + " | ".join(COLUMNS[column][1].format(row[column]) for column in columns) + " |"
            )
    for name in tables:
        of = made[name]
        text = f"{of['hardware']}; {of['versions']}; commit {of['commit']}; `{of['command']}`."
        if lines[-1].partition(": ")[2] == text:
            lines[-1] = f"{lines[-1].partition(': ')[0]}, {name}: {text}"
        else:
            lines += ["", f"{name}: {text}"]
    return "\n".join(lines)


def flat(tables: dict[str, dict[str, Row]]) -> Row:
    """{"Lkv Lkv=1, S=1 hr": 0.19, ...}"""
    return {
        f"{name} {label} {column}": round(value, 5)
        for name, rows in tables.items()
        for label, row in rows.items()
        for column, value in row.items()
    }


class Results:
    """The rows so far, written to a file after each one; rows and tables of the same settings stay in that file."""

    def __init__(self, path: Path | None, note: str, fresh: bool) -> None:
        self.tables: dict[str, dict[str, Row]] = {}
        self.made: dict[str, dict[str, str]] = {}  # what each table was made with
        self._path, self._note, self._known = path, note, {}
        self.setting = this_setting()  # now: the checkout may move on during the training
        if path is not None and path.is_file() and not fresh:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if earlier["note"] == note:
                self._take(earlier)

    def _take(self, earlier: dict[str, Any]) -> None:
        self._known = earlier["rows"]
        for key, row in self._known.items():
            table, _, label = key.partition("|")
            self.tables.setdefault(table, {})[label] = row
            one = {name: earlier[name] for name in self.setting}
            self.made[table] = earlier.get("made", {}).get(table, one)

    def known(self, table: str, label: str) -> Row | None:
        """The row as it was made earlier, in this run or one before."""
        found: Row | None = self._known.get(f"{table}|{label}")
        return found

    def keep(self, table: str, label: str, row: Row) -> None:
        """Add a row and write; a row that was there keeps what it was made with."""
        if self.known(table, label) != row:
            self.made[table] = self.setting
        self._known[f"{table}|{label}"] = row
        self.tables.setdefault(table, {})[label] = row
        if self._path is not None:
            content = self.setting | {"made": self.made, "note": self._note}
            content |= {"numbers": flat(self.tables), "rows": self._known}
            self._path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            text = markdown(self.tables, self.made, self._note)
            self._path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
