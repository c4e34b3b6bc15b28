"""Statistics and claims on numbers whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from parsimony import claims, rate_distortion
from parsimony.config import Check, Paper
from parsimony.errors import UserError
from parsimony.quantities import QUANTITIES
from parsimony.stats import estimate, paired_difference, pareto, summarise, tie_group


def timed(n, ratio, noise, seed):
    """Items whose true speed-up is ``ratio``."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 60, n).astype(float)
    seconds = tokens * 0.01
    return pd.DataFrame(
        {
            "tokens": tokens,
            "seconds": seconds / ratio * rng.lognormal(0, noise, n),
            "reference_tokens": tokens,
            "reference_seconds": seconds * rng.lognormal(0, noise, n),
        },
        index=pd.Index(range(n), name="item"),
    )


def test_speedup_is_the_ratio_of_totals():
    value, low, high, n = estimate(QUANTITIES["speedup"], timed(40, 1.5, 0.0, 0))
    assert n == 40 and value == pytest.approx(1.5) and low == pytest.approx(1.5) == pytest.approx(high)


def test_no_interval_below_30_items():
    value, low, high, n = estimate(QUANTITIES["speedup"], timed(29, 1.5, 0.1, 0))
    assert n == 29 and np.isnan([low, high]).all() and value > 1


def test_intervals_cover_the_truth_as_often_as_they_claim():
    hits = 0
    for seed in range(200):
        _, low, high, _ = estimate(QUANTITIES["speedup"], timed(60, 1.3, 0.2, seed), seed)
        hits += low <= 1.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_tie_group_holds_what_cannot_be_separated():
    systems = {"fast": timed(60, 1.5, 0.05, 0), "as_fast": timed(60, 1.49, 0.05, 1), "slow": timed(60, 1.0, 0.05, 2)}
    assert sorted(tie_group(QUANTITIES["speedup"], systems)) == ["as_fast", "fast"]
    assert tie_group(QUANTITIES["speedup"], {k: v[:10] for k, v in systems.items()}) == []
    difference, low, high = paired_difference(QUANTITIES["speedup"], systems["fast"], systems["slow"])
    assert low < 0.5 < high or difference == pytest.approx(0.5, abs=0.1)


def test_pareto_front():
    points = np.array([[1, 1], [2, 3], [3, 2], [2, 2], [3, 3]])
    assert pareto(points, (True, True)).tolist() == [False, False, False, False, True]
    assert pareto(points, (False, True)).tolist() == [True, True, False, False, False]


def test_bd_rate_of_half_the_rate_is_minus_fifty_percent():
    rate, quality = np.array([1.0, 2, 4, 8]), np.array([30.0, 33, 36, 39])
    assert rate_distortion.bd_rate(rate, quality, rate / 2, quality) == pytest.approx(-50, abs=0.1)
    with pytest.raises(UserError, match="4 points"):
        rate_distortion.bd_rate(rate[:3], quality[:3], rate, quality)
    with pytest.raises(UserError, match="overlap"):
        rate_distortion.bd_rate(rate, quality, rate, quality + 50)


def records(values):
    """Records of one benchmark: {(method, point): wide frame}."""
    rows = []
    for (method, point), wide in values.items():
        long = wide.reset_index().melt("item", var_name="metric")
        rows.append(
            long.assign(model="m", benchmark="b", method=method, point=point, category="maths", status="ok", reason="")
        )
    skipped = rows[0].head(1).assign(category="translation", status="skipped", reason="no data", value=np.nan, item="")
    return pd.concat([*rows, skipped], ignore_index=True)


def test_summary_has_every_measurable_quantity_and_the_reason_of_the_rest():
    summary = summarise(records({("x", "p"): timed(40, 2.0, 0.0, 0)}))
    assert set(summary["quantity"]) == {"tokens_per_second", "speedup", ""}
    assert summary[summary["status"] == "skipped"][["category", "reason"]].to_numpy().tolist() == [
        ["translation", "no data"]
    ]


def claim(check):
    text = {"title": "t", "authors": "a", "venue": "v", "year": 2025, "arxiv": None, "code": None, "kind": "k"}
    one = {"id": "c", "statement": "s", "published": "2x", "conditions": "c", "source": "s", "check": check}
    study = {"methods": ["x"], "benchmarks": ["b"]}
    return Paper.model_validate(text | {"family": "autoregressive", "claims": [one], "study": [study]})


@pytest.mark.parametrize(
    ("right", "relation", "verdict"),
    [(1.9, ">=", "reproduced"), (2.5, ">=", "not reproduced"), (2.5, "<", "reproduced")],
)
def test_verdicts_follow_the_predicate(right, relation, verdict):
    summary = summarise(records({("x", "p"): timed(40, 2.0, 0.01, 0), ("x", "q"): timed(40, 1.2, 0.01, 0)}))
    left = {"quantity": "speedup", "method": "x", "benchmark": "b", "point": "best"}
    paper = claim({"left": left, "relation": relation, "right": right, "scale": "Small."})
    (row,) = claims.ledger({"k": paper}, summary)
    assert row["verdict"] == verdict and row["ours"] == pytest.approx(2.0, abs=0.05) and "Small." in row["note"]
    (covered,) = claims.coverage({"k": paper}, [{"id": "c1", "papers": ["k"]}], [row],
                                 {"published": {"c1": "old"}, "today": {"c1": "new"}})  # fmt: skip
    assert covered["stale"] == ["c1"] and covered["claims_measured"] == 1 and covered["verdicts"] == {verdict: 1}


def test_a_claim_may_compare_two_methods():
    summary = summarise(records({("x", "p"): timed(40, 2.0, 0.01, 0), ("y", "p"): timed(40, 1.2, 0.01, 0)}))
    left = {"quantity": "speedup", "method": "x", "benchmark": "b"}
    check = Check.model_validate({"left": left, "relation": ">", "right": left | {"method": "y"}, "factor": 1.3})
    assert claims.ledger({"k": claim(check)}, summary)[0]["verdict"] == "reproduced"
    assert claims.ledger({"k": claim(None)}, summary)[0]["verdict"] == "needs hardware"
    assert claims.ledger({"k": claim(check)}, summary.iloc[:0])[0]["note"] == "not measured in this suite"


def test_a_claim_on_a_curve_without_a_value_is_not_reproduced_and_says_why():
    rows = [{"quantity": "bd_rate_psnr", "method": "x", "benchmark": "b", "category": "all", "value": np.nan}]
    summary = pd.DataFrame(rows).assign(point="curve", reason="it gets worse")
    left = {"quantity": "bd_rate_psnr", "method": "x", "benchmark": "b"}
    check = Check.model_validate({"left": left, "relation": "<", "right": 0, "scale": "Small."})
    (row,) = claims.ledger({"k": claim(check)}, summary)
    assert row["verdict"] == "not reproduced" and row["note"] == "x has no bd_rate_psnr: it gets worse. Small."
