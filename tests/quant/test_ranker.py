from __future__ import annotations

import numpy as np

from model.data import Row, from_rows
from model.dlrm import DLRMOptions
from model.split import leave_one_out
from quant.ranker import NAME, ranker_analysis

YEAR_S = 365 * 86400


def test_a_ranker_on_unscaled_features_is_wide_where_they_enter_and_only_there() -> None:
    """Times of day in this century: seconds since 1970 alone have the variance that the paper names, and more."""
    rng = np.random.default_rng(0)
    rows = [
        Row(f"u{user}", f"i{int(item)}", 30.0 * YEAR_S + float(rng.uniform(0, YEAR_S)), float(rng.integers(1, 6)))
        for user in range(40)
        for item in rng.choice(60, size=12, replace=False)
    ]
    found = ranker_analysis(leave_one_out(from_rows(rows)), 0, DLRMOptions(epochs=3, batch_size=128))
    assert found.model == NAME
    by_name = {layer.report.layer: layer for layer in found.layers}
    assert list(by_name) == ["bottom.0", "bottom.2", "top.0", "top.2", "top.4"]
    entry = by_name["bottom.0"].activation
    assert entry is not None
    assert entry.variance > 1e7
    assert entry.absmax > 9e8
    assert all(layer.activation is not None and layer.activation.absmax < 1000 for layer in found.layers[1:])
    assert "keep it in 16 bits" in found.outliers()["bottom.0"]
    assert "with every Linear in E4M3" in found.remarks[0]
