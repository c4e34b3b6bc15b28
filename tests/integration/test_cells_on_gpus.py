"""Cells of the published scale on two (pretended) GPUs, in miniature: where every tensor of a benchmark has to lie."""

import math

import pytest
from conftest import ROOT
from pretend_gpus import PretendGpus

from parsimony import cell, devices, records
from parsimony.cell import Places, measure_item
from parsimony.plan import make_plan

PLAN = make_plan(["suite=cluster", "scale=rehearsal"], ROOT)
PLACES = Places(ROOT / "resources", ROOT / "results" / PLAN.name)


UNSEEN = ("perception_imagenet", "perception_librispeech")
"""Benchmarks whose networks are another library's modules, inside which the pretence does not see."""
CELLS = [key for key, one in PLAN.cells.items() if one.benchmark not in UNSEEN]


@pytest.mark.slow
@pytest.mark.parametrize("cell_id", CELLS)
def test_an_item_is_measured_on_gpus_as_on_the_processor(cell_id, monkeypatch):
    if not PLACES.records(cell_id).exists():
        pytest.skip("needs its rehearsal's records: snakemake --cores 2 --config suite=cluster scale=rehearsal")
    if reason := PLAN.obstacle(PLAN.cells[cell_id].method, PLAN.cells[cell_id].benchmark):
        pytest.skip(reason)
    frame, _ = records.read(PLACES.records(cell_id))
    item = frame["item"].iloc[0]
    monkeypatch.setattr(cell, "ask", lambda plan, key: {"gpu": 2})
    monkeypatch.setattr(devices, "use", lambda count, locks: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(devices, "held", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(type(PLAN), "gpu_gb", 80.0)
    with PretendGpus():
        outcome = measure_item(PLAN, cell_id, item, PLACES)
    found = {(point, metric) for point, metric, *_ in outcome.numbers}
    assert found == set(frame[frame["item"] == item][["point", "metric"]].itertuples(index=False, name=None))
    assert not [each for each in outcome.numbers if math.isnan(each[2])]
