"""From a suite to cells and assets.  Pure and fast: imports neither torch nor transformers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from parsimony import fingerprint, sandbox
from parsimony.compose import GROUPS, compose
from parsimony.config import Asset, Benchmark, Method, Model, Paper, Suite, parse
from parsimony.errors import UserError, nearest
from parsimony.rows import read_rows


@dataclass(frozen=True)
class Cell:
    """One (model, method, benchmark) triple: one job, all operating points of the method.

    Attributes
    ----------
    points : tuple of str
        Operating points to evaluate, in the order of the method's config.
    papers : tuple of str
        Papers of the suite whose study asks for this cell.
    needs : tuple of str
        Cells that must be measured before.
    assets : tuple of str
        Assets that must be there: the model's (if it has one), the benchmark's and the method's.
    code : str
        Version of the code of method, reference and benchmark.
    version : str
        Hash of all that determines the result: code, configuration and assets.
    """

    id: str
    model: str
    method: str
    benchmark: str
    points: tuple[str, ...]
    papers: tuple[str, ...]
    needs: tuple[str, ...]
    assets: tuple[str, ...]
    code: str
    version: str


@dataclass(frozen=True)
class Plan:
    """Everything a suite measures, with the configuration it was made from."""

    root: Path
    name: str
    suite: Suite
    papers: dict[str, Paper]
    models: dict[str, Model]
    methods: dict[str, Method]
    benchmarks: dict[str, Benchmark]
    lock: dict[str, Asset]
    cells: dict[str, Cell]

    @cached_property
    def assets(self) -> dict[str, str]:
        """Assets of all cells and their inputs, inputs first, with the version of each."""
        order: dict[str, str] = {}

        def add(key: str):
            for needed in self.lock[key].requires:
                add(needed)
            order.setdefault(key, self.asset_version(key))

        for cell in self.cells.values():
            for key in cell.assets:
                add(self.played_by(key))
        return order

    def played_by(self, asset: str) -> str:
        """The asset that is loaded where one is asked for: itself or, in a rehearsal, its stand-in."""
        if self.suite.scale != "rehearsal":
            return asset
        row = self.lock[asset]
        if row.source == "hub" and row.rehearsal is None:
            raise UserError(
                f"asset {asset!r} has no stand-in for a rehearsal: name one in its row of configs/assets.lock.yaml "
                "(rehearsal: KEY)"
            )
        return row.rehearsal or asset

    @cached_property
    def _asset_versions(self) -> dict[str, str]:
        return {}

    def asset_version(self, key: str) -> str:
        """Hash of an asset's lock row, of the code that makes it, and of its inputs."""
        if key not in self._asset_versions:
            row = self.lock[key]
            made = row.source in ("generated", "trained")
            code = fingerprint.code_version(row.origin) if made else ""
            inputs = [self.asset_version(needed) for needed in row.requires]
            self._asset_versions[key] = fingerprint.combine([row.content(), code, inputs])
        return self._asset_versions[key]

    @cached_property
    def papers_version(self) -> str:
        """Hash of the content of all papers, whose claims the report judges."""
        return fingerprint.combine({k: p.model_dump(mode="json") for k, p in read_papers(self.root).items()})

    def cell(self, cell_id: str) -> Cell:
        """A cell by its id, or one sentence that names the nearest."""
        if cell_id not in self.cells:
            raise UserError(f"suite {self.name!r} has no cell {cell_id!r}{nearest(cell_id, self.cells)}")
        return self.cells[cell_id]

    def cells_of(self, paper: str) -> list[str]:
        """Cells that a paper's study asks for, or one sentence that says why there are none."""
        if paper not in self.papers:
            known = read_papers(self.root)
            if paper not in known:
                raise UserError(f"no paper {paper!r} in configs/paper{nearest(paper, known)}")
            reason = known[paper].pending or f"suite {self.name!r} does not name it; choose a suite that does"
            raise UserError(f"paper {paper!r} has no study to run: {reason}")
        return [key for key, cell in self.cells.items() if paper in cell.papers]

    def peer(self, method: str, benchmark: str) -> str | None:
        """The method that is timed beside another on a benchmark of this suite, if any."""
        allowed = self.suite.peers is None or benchmark in self.suite.peers
        return self.methods[method].peer if allowed else None

    def params(self, benchmark: str) -> dict:
        """Parameters of a benchmark in this suite."""
        rehearsed = self.suite.rehearsal.get(benchmark, {}) if self.suite.scale == "rehearsal" else {}
        return self.benchmarks[benchmark].params | self.suite.params.get(benchmark, {}) | rehearsed

    @property
    def gpu_gb(self) -> float | None:
        """Memory of each GPU that cells run on; None for processors, on which rehearsals run."""
        return None if self.suite.scale == "rehearsal" else self.suite.gpu_gb

    def excluded(self, asset: str) -> list[str]:
        """Sources of an asset, and of what it is made of, that this suite takes nothing from."""
        row = self.lock[asset]
        parts = (self.excluded(needed) for needed in row.requires)
        return sorted(({row.source} - set(self.suite.sources)).union(*parts))

    def timed(self, cell_id: str) -> bool:
        """Whether a cell needs the machine for itself: unless its benchmark's parameters say ``timed: false``."""
        return self.params(self.cells[cell_id].benchmark).get("timed", True)

    def obstacle(self, method: str, benchmark: str) -> str:
        """Why the method or the benchmark cannot be run with what is installed; "" if they can."""
        module, programs = self.methods[method].module, self.benchmarks[benchmark].programs
        if module and not find_spec(module):
            return f"Python module {module!r} is not installed; `make oracles` installs it"
        return sandbox.obstacle(tuple(programs)) if programs else ""

    def as_json(self) -> dict:
        """``{"cells": [...], "assets": [...]}``."""
        rows = [{"key": k, "source": self.lock[k].source, "version": v} for k, v in self.assets.items()]
        return {"cells": [asdict(cell) for cell in self.cells.values()], "assets": rows}


def make_plan(overrides: Sequence[str] = (), root: Path | None = None, only: str | None = None) -> Plan:
    """Read ``configs/`` with Hydra overrides such as ``suite=local`` or ``method.token_recycling.params.hot=false``.

    ``scale=rehearsal`` is no part of the configuration: it turns a suite of the published scale into its rehearsal.

    With the cell ``only`` that a study asks for, the plan holds this cell and what it needs, and is made several times
    faster: versions of code take most of the time.

    Raises
    ------
    UserError
        One sentence that names what is wrong, in which file, and the nearest valid key.
    """
    root = find_root() if root is None else Path(root).resolve()
    scales = [override.removeprefix("scale=") for override in overrides if override.startswith("scale=")]
    name, raw = compose(root, [override for override in overrides if not override.startswith("scale=")])
    where = f"configs/suite/{name}.yaml"
    suite = parse(Suite, raw["suite"], where)
    for scale in scales:
        if scale != "rehearsal" or suite.scale != "published":
            raise UserError(
                f"scale={scale} does not fit {where}, which is of scale {suite.scale!r}: what can be chosen is "
                "scale=rehearsal, for a suite of scale 'published'"
            )
        suite, name = suite.model_copy(update={"scale": scale}), f"{name}_{scale}"
    groups = {
        group: {key: parse(kind, value, f"configs/{group}/{key}.yaml") for key, value in raw[group].items()}
        for group, kind in GROUPS.items()
    }
    lock = read_lock(root)
    papers = read_papers(root, suite.papers, where)
    plan = Plan(root, name, suite, papers, groups["model"], groups["method"], groups["benchmark"], lock, {})
    _check_names(plan, where)
    wanted = _studies(plan)
    chosen = [triple for triple in wanted if only == _cell_id(*triple)] or wanted
    for triple in chosen:
        for paper in wanted[triple]:
            _add(plan, *triple, paper, wanted)
    return plan


def _cell_id(model: str, method: str, benchmark: str) -> str:
    return f"{benchmark}--{model}--{method}"


def _studies(plan: Plan) -> dict[tuple[str, str, str], dict[str, set[str] | None]]:
    """(model, method, benchmark) -> paper -> operating points (None: all), for what the suite takes of the studies."""
    wanted: dict = {}
    scale = "small" if plan.suite.scale == "small" else "published"
    for paper, config in plan.papers.items():
        where = f"configs/paper/{paper}.yaml"
        studies = [study for study in config.study if study.scale == scale]
        if config.study and not studies:
            raise UserError(
                f"{where}: no study is of the scale {scale!r} of suite {plan.name!r}; give one `scale: {scale}`, or "
                "take the paper out of the suite"
            )
        for study in studies:
            for key, points in study.points.items():
                _known(key, study.methods, "method of this study", where)
                for point in points:
                    _known(point, plan.methods[key].points, f"point of method {key!r}:", where)
            for benchmark in study.benchmarks:
                for method in study.methods:
                    left_out = plan.suite.points.get(method) == []
                    if left_out or plan.suite.benchmarks and benchmark not in plan.suite.benchmarks:
                        continue
                    for model in study.models or plan.suite.models:
                        points = study.points.get(method)
                        wanted.setdefault((model, method, benchmark), {})[paper] = points and set(points)
    return wanted


def find_root(start: Path | None = None) -> Path:
    """The project's folder: the nearest one upwards that holds ``configs/config.yaml``."""
    start = Path(start or os.environ.get("PARSIMONY_ROOT") or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "configs" / "config.yaml").is_file():
            return folder
    raise UserError(f"no configs/config.yaml in {start} or above it: run inside the project's folder")


def read_papers(root: Path, keys: Iterable[str] | None = None, where: str = "") -> dict[str, Paper]:
    """The papers with the given keys (all papers of ``configs/paper`` if none are given)."""
    folder = root / "configs" / "paper"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    papers = {}
    for key in known if keys is None else keys:
        if key not in known:
            raise UserError(f"{where}: no paper {key!r} in configs/paper{nearest(key, known)}")
        papers[key] = parse(Paper, read_rows(folder / f"{key}.yaml"), f"configs/paper/{key}.yaml")
    return papers


def read_lock(root: Path) -> dict[str, Asset]:
    """All rows of ``configs/assets.lock.yaml``."""
    from parsimony.assets import read_lock as read

    return read(root / "configs" / "assets.lock.yaml")


def _check_names(plan: Plan, where: str) -> None:
    """Every name in the suite and in the studies must be there."""
    for key in plan.suite.models:
        _known(key, plan.models, "model", where)
    for key in plan.suite.benchmarks:
        _known(key, plan.benchmarks, "benchmark", where)
    for key, points in plan.suite.points.items():
        _known(key, plan.methods, "method", where)
        for point in points:
            _known(point, plan.methods[key].points, f"point of method {key!r}:", where)
    for key in plan.suite.peers or ():
        _known(key, plan.benchmarks, "benchmark", where)
    for key, params in [*plan.suite.params.items(), *plan.suite.rehearsal.items()]:
        _known(key, plan.benchmarks, "benchmark", where)
        for param in params:
            _known(param, plan.benchmarks[key].params, f"parameter of benchmark {key!r}:", where)
    for group in ("models", "methods", "benchmarks"):
        for key, config in getattr(plan, group).items():
            if not fingerprint.exists(config.target):
                raise UserError(f"configs/{group[:-1]}/{key}.yaml: _target_ {config.target!r} is not defined in src/")


def _known(key: str, valid, what: str, where: str) -> None:
    if key not in valid:
        raise UserError(f"{where}: no {what} {key!r}{nearest(key, valid)}")


def _add(plan: Plan, model: str, method: str, benchmark: str, paper: str, wanted: dict) -> str:
    """Add a cell and the cells it needs; returns its id.  Its points are those that any of ``wanted`` asks for."""
    where = f"configs/paper/{paper}.yaml"
    _known(method, plan.methods, "method", where)
    _known(benchmark, plan.benchmarks, "benchmark", where)
    _known(model, plan.models, "model", where)
    m, b = plan.methods[method], plan.benchmarks[benchmark]
    for kind, key, config in (("method", method, m), ("benchmark", benchmark, b)):
        if config.architecture != plan.models[model].architecture:
            raise UserError(
                f"{where}: {kind} {key!r} is for models of architecture {config.architecture!r} and does not fit "
                f"model {model!r}, which is a {plan.models[model].architecture!r}"
            )
    if b.needs not in m.implements:
        raise UserError(
            f"{where}: method {method!r} does not fit benchmark {benchmark!r}, which needs {b.needs}; the method "
            f"implements {', '.join(m.implements)}"
        )
    cell_id = _cell_id(model, method, benchmark)
    if cell_id in plan.cells:
        old = plan.cells[cell_id]
        if paper not in old.papers:
            plan.cells[cell_id] = Cell(**{**vars(old), "papers": (*old.papers, paper)})
        return cell_id
    reference = m.reference or method
    peer = plan.peer(method, benchmark) or method
    for other in (reference, peer):
        _known(other, plan.methods, "method", f"configs/method/{method}.yaml")
    used = [key for key in (*m.uses, *b.uses) if (reference, key) != (method, benchmark)]
    needs = tuple(dict.fromkeys(_add(plan, model, reference, key, paper, wanted) for key in used))
    others = [plan.methods[other] for other in (reference, peer)]
    extra = [key for config in (m, *others) for key in config.assets.get(model, {}).values()]
    weights = plan.models[model].asset
    assets = list(dict.fromkeys([*([weights] if weights else []), *b.assets, *extra]))
    for key in assets:
        _known(key, plan.lock, "asset", "configs/assets.lock.yaml")
        _known(plan.played_by(key), plan.lock, f"asset (stand-in of {key!r})", "configs/assets.lock.yaml")
    allowed = tuple(key for key in assets if not plan.excluded(key))
    asked = wanted.get((model, method, benchmark), {}).values()
    chosen = set().union(*asked) if asked and None not in asked else set(m.points)
    points = tuple(p for p in m.points if p in chosen and p in plan.suite.points.get(method, m.points))
    if not points:
        raise UserError(
            f"{where}: suite {plan.name!r} takes none of the points of method {method!r} that the study of "
            f"{benchmark!r} names ({', '.join(sorted(chosen))}); mend suite.points or the study"
        )
    code = fingerprint.code_version(m.target, *(o.target for o in others), b.target, plan.models[model].target)
    settings = [
        _settings(m, model) | {"points": {p: m.points[p] for p in points}},
        [_settings(other, model) | {"points": other.points} for other in others if other is not m],
        [b.target, plan.params(benchmark)],
        [plan.models[model].model_dump(mode="json", exclude={"parameters"}), plan.suite.seed],
        [plan.asset_version(plan.played_by(key)) for key in allowed],
        [plan.cells[need].version for need in needs],
    ]
    if plan.obstacle(method, benchmark):
        settings.append("without what it needs")  # so that it is measured once that is there
    version = fingerprint.combine([code, *settings])
    plan.cells[cell_id] = Cell(cell_id, model, method, benchmark, points, (paper,), needs, allowed, code, version)
    return cell_id


def _settings(method: Method, model: str) -> dict:
    """What a method's results on a model hang on, but for its points."""
    settings = method.model_dump(mode="json", exclude={"points", "hasty", "assets"})
    return settings | {"assets": method.assets.get(model, {})}
