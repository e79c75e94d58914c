"""Real data, the quick version: the gate waits on few clicks, and real customers raise no more false alarms than alpha.

The whole of it is `python tests/bench/real_data.py`; its results lie in tests/bench/results/.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stats.simulation.jobs import Batch
from stats.simulation.rates import Rates
from tests.bench import cdnow, open_bandit, real_data
from tests.bench.real_report import render
from tests.bench.real_sources import CDNOW, OPEN_BANDIT, ContentError, Source, UnreachableError

RUNS = 150


def fetched(source: Source) -> dict[str, bytes]:
    try:
        return source.read()
    except UnreachableError as error:
        pytest.skip(f"real data not to be had: {error}")


@pytest.fixture(scope="module")
def logs() -> dict[str, dict[str, open_bandit.Log]]:
    contents = fetched(OPEN_BANDIT)
    return {campaign: open_bandit.campaign_logs(contents, campaign) for campaign in open_bandit.CAMPAIGNS}


@pytest.fixture(scope="module")
def people() -> cdnow.Customers:
    fetched(CDNOW)
    return cdnow.customers()


@pytest.fixture(scope="module")
def rates(people: cdnow.Customers) -> Rates:
    return {at: rate for share in cdnow.SHARES for at, rate in cdnow.run(share, Batch(RUNS, (1,))).items()}


# Open Bandit Dataset ------------------------------------------------------------------------------------------------

CLICKS = {"all": (38, 42), "men": (46, 69), "women": (46, 46)}
"""Of Random and of BTS, in 10,000 rows each."""


@pytest.mark.parametrize("campaign", open_bandit.CAMPAIGNS)
@pytest.mark.parametrize("unit", open_bandit.UNITS)
def test_the_gate_holds_on_so_few_clicks(logs: dict[str, dict[str, open_bandit.Log]], campaign: str, unit: str) -> None:
    found = open_bandit.outcome(logs[campaign], campaign, unit)
    assert found.verdict == "hold"
    assert any("burn-in" in reason for reason in found.reasons)
    assert (found.clicks["random"], found.clicks["bts"]) == CLICKS[campaign]
    for arm, reading in (("random", found.control), ("bts", found.treatment)):
        assert reading.value == pytest.approx(found.clicks[arm] / 10_000)
        assert reading.low < reading.value < reading.high
    assert found.low < 0 < found.high, "nothing is significant over all looks"
    assert found.p_harm == 1


def test_units_are_whole_and_every_row_is_in_one(logs: dict[str, dict[str, open_bandit.Log]]) -> None:
    for policies in logs.values():
        for log in policies.values():
            m = {unit: log.moments(unit, 24 * open_bandit.DAYS) for unit in open_bandit.UNITS}
            assert m["impression"].sy == m["profile"].sy == 10_000
            assert 200 < m["profile"].n < 260
            assert 9_900 < m["impression"].n <= 10_000
            pairs = np.unique(np.stack([log.impression, log.profile]), axis=1)
            assert pairs.shape[1] == m["impression"].n, "an impression belongs to one profile"


def test_one_look_would_have_called_men_significant_and_the_two_sided_sequence_does_not(
    logs: dict[str, dict[str, open_bandit.Log]],
) -> None:
    found = open_bandit.outcome(logs["men"], "men", "impression")
    assert found.p_one_look < 0.05
    assert found.low < 0
    assert found.p_not_worse == pytest.approx(found.p_exact, rel=0.5), "the normal limit against the exact e-process"


# CDNOW --------------------------------------------------------------------------------------------------------------


def test_customers_are_those_of_the_literature(people: cdnow.Customers) -> None:
    assert people.after.size == 23_570
    assert people.orders_before.min() >= 1, "everybody first bought before the split"
    assert people.orders.sum() + people.orders_before.sum() == 69_659
    assert np.corrcoef(people.before, people.after)[0, 1] == pytest.approx(0.55, abs=0.005)


def test_adjusting_and_capping_cut_the_variance_as_the_design_says(people: cdnow.Customers) -> None:
    cuts = cdnow.variance_cuts(people)
    for metric, share in cdnow.CUTS.items():
        assert cuts[metric][0] == pytest.approx(share, abs=0.01), metric
    assert cuts[cdnow.BOTH][1] < cuts[cdnow.BOTH][0], "a margin in per cent gains less: the cap lowers the mean"


def test_a_covariate_of_the_split_itself_is_not_used(people: cdnow.Customers) -> None:
    """Planted: dollars after the split in the covariate would explain nearly everything, and hide any effect."""
    leaked = cdnow.Customers(people.before + people.after, *(getattr(people, n) for n in people.__slots__[1:]))
    assert cdnow.variance_cuts(leaked)[cdnow.CUPED][0] > 0.7 > 2 * cdnow.variance_cuts(people)[cdnow.CUPED][0]


def test_re_randomised_customers_raise_no_more_false_alarms_than_alpha(rates: Rates) -> None:
    gate = {at: rate for at, rate in rates.items() if at[1] in cdnow.GATE}
    assert len(gate) == len(cdnow.SHARES) * (len(cdnow.MEANS) + 1) * len(cdnow.GATE)
    for at, rate in gate.items():
        assert rate.runs == RUNS
        assert rate.interval()[0] <= cdnow.ALPHA, f"{at}: {rate.text()}"
    assert sum(rate.hits for rate in gate.values()) <= cdnow.ALPHA * RUNS * len(gate), "on the whole far below"


def test_planted_errors_are_visible_on_real_customers(rates: Rates) -> None:
    assert rates["5/95: spend", cdnow.NO_FLOOR].interval()[0] > cdnow.ALPHA
    for share in cdnow.SHARES:
        assert rates[f"{share}: {cdnow.PER_ORDER}", cdnow.ORDERS].interval()[0] > cdnow.ALPHA
        for metric in cdnow.MEANS:
            assert rates[f"{share}: {metric}", cdnow.PEEK].interval()[0] > cdnow.ALPHA, (share, metric)


# The kept results ---------------------------------------------------------------------------------------------------


def test_the_kept_report_is_made_of_the_kept_figures_and_no_claim_is_broken() -> None:
    document = json.loads((real_data.RESULTS / "real_data.json").read_text(encoding="utf-8"))
    assert not real_data.broken(document)
    assert render(document, []) == (real_data.RESULTS / "real_data.md").read_text(encoding="utf-8")
    assert document["numbers"]["runs"] == 2000


def test_a_broken_claim_is_said() -> None:
    document = json.loads((real_data.RESULTS / "real_data.json").read_text(encoding="utf-8"))
    document["open_bandit"][0]["verdict"] = "promote"
    document["false_alarms"][0][2] = 1900
    document["variance_cuts"][str(cdnow.SPLIT)][cdnow.CUPED][0] = 0.1
    said = real_data.broken(document)
    assert [one.partition(":")[0] for one in said] == ["all by impression", "50/50", cdnow.CUPED]
    assert "Claims broken" in render(document, said)


# Where the data come from -------------------------------------------------------------------------------------------


def wheel(folder: Path, content: bytes, expected: bytes) -> Source:
    with zipfile.ZipFile(folder / "some-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("some/data.csv", content)
    return Source("some==1.0", "some-1.0-py3-none-any.whl", {"some/data.csv": hashlib.sha256(expected).hexdigest()})


def test_a_cached_wheel_is_read_and_checked(tmp_path: Path) -> None:
    assert wheel(tmp_path, b"1,2", b"1,2").read(tmp_path) == {"some/data.csv": b"1,2"}
    with pytest.raises(ContentError, match=r"some/data\.csv has sha256"):
        wheel(tmp_path, b"1,3", b"1,2").read(tmp_path)
    (tmp_path / "some-1.0-py3-none-any.whl").write_bytes(b"not a zip")
    with pytest.raises(ContentError, match="not the expected wheel"):
        Source("some==1.0", "some-1.0-py3-none-any.whl", {"some/data.csv": ""}).read(tmp_path)


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PIP_INDEX_URL", "http://127.0.0.1:9/simple"),
        ("PIP_EXTRA_INDEX_URL", ""),
        ("PIP_FIND_LINKS", ""),
        ("PIP_NO_CACHE_DIR", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(UnreachableError, match=r"cannot download obp==0\.4\.1; or put obp-0\.4\.1"):
        OPEN_BANDIT.read(tmp_path)
