"""The serving benchmark's load: what `traffic.py` sends from processes of its own, joined."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from serving_plan import Plan
from traffic import Job, Seen

HERE = Path(__file__).resolve().parent


class Load:
    """Senders against one service; no two jobs share a user or a seed."""

    def __init__(self, url: str, token: str, plan: Plan) -> None:
        self._url, self._token, self._plan = url, token, plan
        self._users = itertools.count(0, 10_000_000)
        self._seeds = itertools.count(1)

    def send(
        self, seconds: float, rate_per_s: float | None = None, concurrency: int = 1, reporting: float = 0.0
    ) -> Seen:
        """Send for some seconds; what the senders saw together. Raises RuntimeError when one of them fails."""
        plan = self._plan
        senders = min(plan.senders, concurrency if rate_per_s is None else plan.senders)
        starts_at = time.time() + 1.0 + 0.0003 * plan.context
        jobs = [
            Job(
                url=self._url,
                token=self._token,
                seconds=seconds,
                starts_at=starts_at,
                items=plan.items,
                history=plan.context,
                rate_per_s=None if rate_per_s is None else rate_per_s / senders,
                concurrency=(concurrency + number) // senders,
                reporting=reporting,
                seed=next(self._seeds),
                first_user=next(self._users),
            )
            for number in range(senders)
        ]
        together = Seen()
        for seen in _sent(jobs):
            together.join(seen)
        return together


def _sent(jobs: Sequence[Job]) -> Iterator[Seen]:
    """What each job's own process saw, all at work at the same time.

    They speak by files: after uvloop a write to a pipe may end early, and unbuffered Python loses the rest.
    """
    with ExitStack() as files:
        children = []
        for job in jobs:
            asked, seen = (files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(2))
            json.dump(asdict(job), asked)
            asked.seek(0)
            children.append(
                (subprocess.Popen([sys.executable, str(HERE / "traffic.py")], stdin=asked, stdout=seen), seen)
            )
        for child, seen in children:
            if child.wait():
                raise RuntimeError(f"a sender failed with exit status {child.returncode}")
            seen.seek(0)
            yield Seen(**json.load(seen))
