"""A folder that measures one item of a cell again: code, configuration, assets and what was recorded."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from parsimony import records
from parsimony.cell import Places, measure_item
from parsimony.errors import UserError
from parsimony.plan import Plan, make_plan

SCRIPT = '''"""Item {item} of cell {cell} again; needs Python with requirements.txt and this folder alone."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "src"))

from parsimony.reproducer import again

again(HERE, {cell!r}, {item!r}, {overrides!r})
'''


def cut(plan: Plan, cell_id: str, item: str, places: Places, overrides: list[str], out: Path) -> Path:
    """Put all that one item of a cell needs into a new folder in ``out``; returns that folder.

    Assets are linked where the file system can, else copied.  Values that were recorded for the item come along.

    Raises
    ------
    UserError
        When the folder is there already, or an asset or a needed cell is missing.
    """
    cell = plan.cell(cell_id)
    folder = out / re.sub(r"[^\w.-]+", "_", f"{cell_id}--{item}")
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it or choose another --out")
    assets = [plan.played_by(key) for key in cell.assets]
    for key in assets:
        if not (places.resources / key).is_dir():
            raise UserError(f"asset {key!r} is not fetched; run `parsimony asset {key}` first")
    for need in cell.needs:
        if not places.records(need).exists():
            raise UserError(f"cell {need!r}, which {cell_id!r} compares with, is not measured; run it first")
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "configs"):
        shutil.copytree(plan.root / name, partial / name, ignore=left_out)
    shutil.copyfile(plan.root / "envs" / "requirements.txt", partial / "requirements.txt")
    for key in assets:
        shutil.copytree(places.resources / key, partial / "resources" / key, copy_function=_link)
    inside = Places(partial / "resources", partial / "results" / plan.name)
    for need in cell.needs:
        for path in (Places.records, Places.outputs):
            path(inside, need).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path(places, need), path(inside, need))
    (partial / "recorded.json").write_text(json.dumps(_recorded(places, cell_id, item), indent=1) + "\n")
    (partial / "reproduce.py").write_text(SCRIPT.format(cell=cell_id, item=item, overrides=list(overrides)))
    partial.rename(folder)
    return folder


def again(folder: Path, cell_id: str, item: str, overrides: list[str]) -> None:
    """Measure the item with what is in the folder, and print each number beside the one that was recorded."""
    plan = make_plan(overrides, folder)
    outcome = measure_item(plan, cell_id, item, Places(folder / "resources", folder / "results" / plan.name))
    recorded = json.loads((folder / "recorded.json").read_text())
    print(f"{'point':24} {'metric':28} {'now':>14} {'recorded':>14}  unit")
    for point, metric, value, unit in outcome.numbers:
        before = recorded.get(point, {}).get(metric)
        text = f"{'none':>14}" if before is None else f"{before:14.6g}"
        print(f"{point:24} {metric:28} {value:14.6g} {text}  {unit}")
    for (point, metric), cause in outcome.failures.items():
        print(f"failed: {metric} at {point}: {cause}")


def _recorded(places: Places, cell_id: str, item: str) -> dict[str, dict[str, float]]:
    """point -> metric -> value of the item's sound and failed records, if the cell is measured."""
    if not places.records(cell_id).exists():
        return {}
    frame, _ = records.read(places.records(cell_id))
    values: dict[str, dict[str, float]] = {}
    for row in frame[frame["item"] == item].itertuples():
        values.setdefault(row.point, {})[row.metric] = float(row.value)
    return values


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
