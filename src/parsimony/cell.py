"""Run one cell: load the model once, build every operating point, measure item by item in shards, publish."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa

from parsimony import devices, fingerprint, provenance, records
from parsimony.assets import Unavailable, load_path
from parsimony.elsewhere import Elsewhere
from parsimony.errors import UserError, nearest
from parsimony.instantiate import instantiate, locate
from parsimony.interfaces import Inputs, Item, Outcome, Stateful
from parsimony.journal import Journal, alone
from parsimony.plan import Cell, Plan
from parsimony.resources import ask

# "element" is what Parquet calls the values of a list, so the schema survives a round trip.
VALUES = pa.list_(pa.field("element", pa.float64()))
OUTPUTS = pa.schema([("item", pa.string()), ("point", pa.string()), ("name", pa.string()), ("values", VALUES)])


@dataclass(frozen=True)
class Places:
    """Folders of a run: assets under ``resources``, everything measured under ``results``/<suite>."""

    resources: Path
    results: Path

    def records(self, cell: str) -> Path:
        return self.results / "cells" / f"{cell}.parquet"

    def outputs(self, cell: str) -> Path:
        return self.results / "outputs" / f"{cell}.parquet"

    def journal(self, cell: str) -> Path:
        return self.results / "journal" / cell


def run_cell(plan: Plan, cell_id: str, places: Places) -> None:
    """Measure a cell and publish its records and raw outputs; finished shards of an earlier try are kept.

    Raises
    ------
    UserError
        When an asset is damaged, a needed cell is missing, or the disk is full.
    """
    cell = plan.cell(cell_id)
    with alone(places.results / "journal" / f"{cell_id}.lock"):
        if _published(cell, places):
            return
        paths, missing = _assets(plan, cell, places)
        benchmark = instantiate(plan.benchmarks[cell.benchmark].target, plan.params(cell.benchmark))
        items = benchmark.items(paths, plan.suite.seed)
        if len({item.id for item in items}) < len(items):
            raise ValueError(f"benchmark {cell.benchmark!r} repeats item ids")
        skipped = benchmark.skipped(missing)
        if reason := plan.obstacle(cell.method, cell.benchmark):
            skipped, items = skipped | {item.category: reason for item in items}, []
        if not items and not skipped:
            raise UserError(f"benchmark {cell.benchmark!r} has no items in suite {plan.name!r}; raise its 'items'")
        journal = Journal(places.journal(cell_id), cell.version, [item.id for item in items], plan.suite.seed)
        shards = _measure(plan, cell, places, paths, benchmark, items, journal)
        _publish(plan, cell, places, benchmark, items, shards, skipped)
        journal.remove()


def measure_item(plan: Plan, cell_id: str, item_id: str, places: Places) -> Outcome:
    """Measure one item as the cell's job would, and record nothing.

    Where systems learn from item to item, or the clock decides, the items before it (or itself) come first.

    Raises
    ------
    UserError
        For an item that the cell does not have, a needed cell or module that is missing, and a damaged asset.
    """
    cell = plan.cell(cell_id)
    if absent := [need for need in cell.needs if not places.records(need).exists()]:
        raise UserError(f"cell {cell_id!r} compares with cell {absent[0]!r}, which is not measured; run it first")
    paths, _ = _assets(plan, cell, places)
    benchmark = instantiate(plan.benchmarks[cell.benchmark].target, plan.params(cell.benchmark))
    items = benchmark.items(paths, plan.suite.seed)
    ids = [item.id for item in items]
    if item_id not in ids:
        raise UserError(f"cell {cell_id!r} has no item {item_id!r}{nearest(item_id, ids)}")
    if reason := plan.obstacle(cell.method, cell.benchmark):
        raise UserError(f"cell {cell_id!r} cannot run: {reason}")
    bench, at = Bench(plan, cell, places, paths), ids.index(item_id)
    with contextlib.closing(bench.elsewhere):
        outcome = benchmark.measure(items[at], bench)
        if bench.state() or benchmark.timed:
            before = items[:at] if bench.state() else []
            bench.restore({})
            for item in before:
                benchmark.measure(item, bench)
            outcome = benchmark.measure(items[at], bench)
    return outcome


def _measure(plan, cell, places, paths, benchmark, items, journal) -> list[dict]:
    """Shards of all items; computes those that the journal lacks."""
    shards = journal.done()
    if len(shards) == len(items):
        return shards
    bench = Bench(plan, cell, places, paths)
    with contextlib.closing(bench.elsewhere):
        return _go_on(cell, benchmark, items, journal, bench, shards)


def _go_on(cell, benchmark, items, journal, bench, shards) -> list[dict]:
    """Measure from where the ``shards`` of an earlier try end."""
    if shards and shards[-1]["learns"]:
        state = journal.state(len(shards) - 1)
        if state is None:
            shards = []  # the systems learn from item to item, and what they had learnt is lost
        else:
            bench.restore(state)
    if benchmark.timed:
        before = bench.state()
        benchmark.measure(items[len(shards)], bench)  # warms up; not recorded
        bench.restore(before)
    began, todo = perf_counter(), len(items) - len(shards)
    for n in range(len(shards), len(items)):
        with devices.metered(bench.gpus) as told:
            outcome = benchmark.measure(items[n], bench)
        shard = _shard(outcome) | {"gpus": told}
        state = bench.state()
        journal.write(n, shard | {"learns": bool(state)}, state)
        shards.append(shard)
        spent, count = perf_counter() - began, n + 1 - (len(items) - todo)
        rest = spent / count * (todo - count)
        print(f"{cell.id}: {n + 1}/{len(items)} {items[n].id}, {rest:.0f} s left", file=sys.stderr, flush=True)
    return shards


def _use(threads: int) -> None:
    """Let numerical libraries use so many threads; torch takes a second to import, and reads it when it comes."""
    os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


class Folders(dict):
    """Folders by field; one that the configuration does not name is one clear sentence."""

    def __init__(self, model: str, folders: dict[str, Path]):
        super().__init__(folders)
        self.model = model

    def __missing__(self, field: str):
        raise UserError(
            f"a method needs an asset {field!r}, which its config does not name for model {self.model!r}: add "
            f"`{self.model}: {{{field}: KEY}}` to its 'assets', or leave out the points that need it"
        )


class Bench:
    """The `Workbench` of a cell: models, systems and reference, each loaded or built at its first use."""

    def __init__(self, plan: Plan, cell: Cell, places: Places, paths: dict[str, Path]):
        threads = provenance.threads(plan.timed(cell.id))
        _use(threads)
        gpus = ask(plan, cell.id)["gpu"]
        self.gpus = devices.use(gpus, places.resources / ".gpus") if gpus else []
        self.plan, self.cell, self.places, self.paths = plan, cell, places, paths
        self.points = cell.points
        self.method = plan.methods[cell.method]
        self.lossless = self.method.lossless
        self.records, self._stored = {}, {}
        for need in cell.needs:
            used = plan.cells[need].benchmark
            self.records[used] = records.read(places.records(need))[0]
            if used == cell.benchmark:
                table, _ = records.read_table(places.outputs(need))
                first = table["point"][0].as_py() if table.num_rows else None
                rows = (row for row in table.to_pylist() if row["point"] == first)
                self._stored = {(row["item"], row["name"]): row["values"] for row in rows}
        self.model = cache(self._model)
        self._build = cache(self._build_system)
        self._built: dict[str, object] = {}
        codecs = {point: self._codec(point) for point in self.points if "Codec" in self.method.implements}
        self.elsewhere = Elsewhere(codecs, threads=threads)

    def decode(self, point: str, streams: list[bytes]):
        return self.elsewhere.decode(point, streams)

    def kept(self, code: str, settings: list, make):
        if self.gpus:  # quicker made than read, and at that scale there are terabytes of it
            return make()
        from parsimony.kept import kept

        asset = self.plan.played_by(self.plan.models[self.cell.model].asset)
        decided = [fingerprint.code_version(code), self.plan.asset_version(asset), settings]
        return kept(self.places.results / "kept" / f"{fingerprint.combine(decided)}.safetensors", make)

    def _codec(self, point: str) -> dict:
        """All that another process needs to build the method at a point."""
        params = self._params(self.method, point)
        assets = {field: str(folder) for field, folder in self._folders(self.method).items()}
        return {"target": self.method.target, "params": params, "assets": assets}

    def _params(self, method, point: str) -> dict:
        """A method's settings at a point; a rehearsal is hasty where that is possible."""
        hasty = method.hasty if self.plan.suite.scale == "rehearsal" else {}
        return method.params | method.points[point] | hasty

    def _folders(self, method) -> dict[str, Path]:
        """Folders of the assets of a method for the cell's model, by field."""
        return Folders(
            self.cell.model,
            {field: self.paths[key] for field, key in method.assets.get(self.cell.model, {}).items()},
        )

    def _model(self, dtype: str):
        config = self.plan.models[self.cell.model]
        folder = self.paths[config.asset] if config.asset else None
        large = config.architecture in ("decoder", "masked", "seq2seq")  # others are small and stay on the processor
        placed = {"devices": self.gpus} if self.gpus and large else {}
        return locate(config.target).load(folder, dtype=dtype, **config.params, **placed)

    def system(self, point: str, dtype: str):
        system = self._build(self.cell.method, point, dtype)
        self._built[f"{point}.{dtype}"] = system
        return system

    def reference(self, dtype: str, point: str = ""):
        return self._other(self.method.reference, point, dtype)

    def peer(self, point: str, dtype: str):
        return self._other(self.plan.peer(self.cell.method, self.cell.benchmark), point, dtype)

    def _other(self, method: str | None, point: str, dtype: str):
        """A method at its point of this name, else at its first."""
        if method is None:
            return None
        points = self.plan.methods[method].points
        return self._build(method, point if point in points else next(iter(points)), dtype)

    def _build_system(self, method: str, point: str, dtype: str):
        config = self.plan.methods[method]
        uses = {used: self.records[used] for used in config.uses if used in self.records}
        built = instantiate(config.target, self._params(config, point))
        return built.build(self.model(dtype), Inputs(self._folders(config), uses))

    def stored(self, item: str, name: str) -> list[float]:
        if (item, name) not in self._stored:
            raise UserError(
                f"cell {self.cell.id!r} compares item {item!r} with the reference, whose cell has no {name!r} for it; "
                f"remove {self.places.records(self.cell.needs[0])} and run again"
            )
        return self._stored[item, name]

    def rng(self, item: str) -> np.random.Generator:
        return np.random.default_rng([self.plan.suite.seed, zlib.crc32(item.encode())])

    def state(self) -> dict:
        """What the systems built so far have learnt: tensors named ``point.dtype.name``."""
        return {
            f"{key}.{name}": tensor
            for key, system in self._built.items()
            if isinstance(system, Stateful)
            for name, tensor in system.state().items()
        }

    def restore(self, state: dict) -> None:
        """Give the systems back what they had learnt when ``state`` was taken."""
        learnt: dict[str, dict] = {key: {} for key in self._built}
        for key, tensor in state.items():
            system, name = key.rsplit(".", 1)
            learnt.setdefault(system, {})[name] = tensor
        for key, tensors in learnt.items():
            system = self.system(*key.split("."))
            if isinstance(system, Stateful):
                system.restore(tensors)


def _shard(outcome: Outcome) -> dict:
    numbers = [
        [point, metric, float(value), unit, outcome.failures.get((point, metric), "")]
        for point, metric, value, unit in outcome.numbers
    ]
    outputs = [[point, name, values] for (point, name), values in outcome.outputs.items()]
    return {"numbers": numbers, "outputs": outputs}


def _publish(plan, cell, places, benchmark, items: list[Item], shards: list[dict], skipped: dict[str, str]) -> None:
    method, seed = plan.methods[cell.method], plan.suite.seed
    common = {"suite": plan.name, "cell": cell.id, "model": cell.model, "benchmark": cell.benchmark}
    common |= {"method": cell.method, "seed": seed}
    settings = {p: json.dumps(method.params | method.points[p], sort_keys=True) for p in cell.points}
    rows, outputs = [], []
    for item, shard in zip(items, shards, strict=True):
        for point, metric, value, unit, cause in shard["numbers"]:
            row = {"point": point, "params": settings[point], "item": item.id, "category": item.category}
            status = {"status": "failed" if cause else "ok", "reason": cause}
            rows.append(common | row | {"metric": metric, "value": value, "unit": unit} | status)
        outputs += [{"item": item.id, "point": p, "name": n, "values": v} for p, n, v in shard["outputs"]]
    for category, reason in skipped.items():
        for point in cell.points:
            row = {"point": point, "params": settings[point], "item": "", "category": category, "metric": "items"}
            rows.append(common | row | {"value": math.nan, "unit": "", "status": "skipped", "reason": reason})
    dtype = plan.params(cell.benchmark).get("dtype", "several")
    facts = provenance.facts(plan.root, cell, dtype, benchmark.timed, gpu=bool(ask(plan, cell.id)["gpu"]))
    facts |= devices.summed([shard.get("gpus") for shard in shards], benchmark.timed)
    records.publish(pa.Table.from_pylist(outputs, schema=OUTPUTS), places.outputs(cell.id), facts)
    records.publish(records.table_of(rows), places.records(cell.id), facts)


def _published(cell: Cell, places: Places) -> bool:
    """Whether sound records of today's version are there (another run may have just made them)."""
    try:
        footers = [records.read_table(path(cell.id))[1] for path in (places.outputs, places.records)]
    except UserError:
        return False
    return all(footer["provenance"]["version"] == cell.version for footer in footers)


def _assets(plan: Plan, cell: Cell, places: Places) -> tuple[dict[str, Path], dict[str, str]]:
    """Folders of the cell's assets, and why the others are missing."""
    paths, missing = {}, {}
    for key in plan.benchmarks[cell.benchmark].assets:
        if key not in cell.assets:
            missing[key] = f"suite {plan.name} takes no data from source {' and '.join(plan.excluded(key))}"
    for key in cell.assets:
        try:
            paths[key] = load_path(plan.played_by(key), plan.lock, places.resources)
        except Unavailable as reason:
            missing[key] = str(reason)
    return paths, missing
