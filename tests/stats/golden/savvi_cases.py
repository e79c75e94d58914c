"""What savvi's Dirichlet-multinomial test says; run by make.py inside its environment."""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np
from savvi.multinomial import Multinomial

GRID = (
    ([50, 50], [0.5, 0.5], 100.0),
    ([520, 480], [0.5, 0.5], 2500.0),
    ([5200, 4800], [0.5, 0.5], 10_000.0),
    ([90, 1010], [0.1, 0.9], 100.0),
    ([300, 350, 290], [1 / 4, 1 / 2, 1 / 4], 2500.0),
)


def cases():
    for counts, shares, k in GRID:
        test = Multinomial(0.001, np.array(shares), k=k)
        test.update(np.array(counts))
        yield {
            "package": "savvi",
            "version": version("savvi"),
            "quantity": "srm_log_e",
            "inputs": {"counts": counts, "shares": shares, "concentration": k},
            "value": float(np.log(test.odds)),
            "why": "",
        }


print(json.dumps(list(cases())))
