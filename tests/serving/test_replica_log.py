from __future__ import annotations

import subprocess
import sys

from serving.replica_log import MARK

SCRIPT = """
import logging, sys
from serving.replica_log import log_to_stderr
log_to_stderr(), log_to_stderr()
sys.stderr = None  # as good as Serve's, which keeps what it is given
logging.getLogger("model.engine.session").info("graph 1 of 2")
logging.getLogger("elsewhere").info("noise")
"""


def test_a_replica_says_each_line_of_its_own_rooms_once_and_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(MARK)
    assert lines[0].endswith("model.engine.session: graph 1 of 2")
