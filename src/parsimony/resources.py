"""What a job asks of a cluster: memory, time and GPUs, from its model, its context and its method.

Estimates on the generous side, rounded up to a few sizes, since the jobs of an array ask the same.  A job killed
for memory or time asks for the next size at its next attempt.
"""

from __future__ import annotations

from math import ceil

from parsimony.plan import Plan

BASE_GB = 3.0
"""Memory of Python, the libraries and the items."""
RECIPE_GB = 6.0
"""The same of a recipe, with what a small network's training needs."""
COPIES = 2.5
"""Memory of a cell, as a multiple of its weights: a second dtype for a time, the cache, what a step needs."""
CATEGORIES = 6
"""Groups of items a benchmark may have, where its parameters do not say which."""
STEPS = 32
"""Passes of an item, where parameters do not say how many tokens it has."""
SECONDS = {"processor": 0.2, "gpu": 0.005}
"""A forward pass over a gigabyte of weights: 16-bit matrices on two cores, and on a GPU with its launches."""
MEMORY = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Gigabytes that are asked for."""
HOURS = (1, 4, 12, 24, 72, 168)
"""Hours that are asked for."""


def ask(plan: Plan, cell_id: str, attempt: int = 1) -> dict[str, int]:
    """``mem_mb``, ``runtime`` (minutes) and ``gpu`` of a cell at its attempt (from 1).

    GPUs are asked for where the suite says how large its GPUs are: as many as hold the weights and a third more, and
    none where a cell has no networks that were there before, as codecs have none that are worth one.
    """
    weights = weights_gb(plan, cell_id)
    memory = BASE_GB + COPIES * weights * (1 + _context(plan, cell_id) / 32768)
    hours = minutes(plan, cell_id) / 60
    return {
        "mem_mb": 1000 * _size(MEMORY, memory, attempt),
        "runtime": 60 * _size(HOURS, hours, attempt),
        "gpu": _gpus(plan, weights),
    }


def ask_recipe(plan: Plan, asset: str, attempt: int = 1) -> dict[str, int]:
    """The same of the job that fetches or makes an asset; GPUs and hours as its row says."""
    row = plan.lock[asset]
    memory = row.memory_gb or RECIPE_GB + COPIES * sum(asset_gb(plan, key) for key in row.requires)
    return {
        "mem_mb": 1000 * _size(MEMORY, memory, attempt),
        "runtime": 60 * _size(HOURS, row.hours, attempt),
        "gpu": row.gpus,
    }


def minutes(plan: Plan, cell_id: str) -> float:
    """How long a cell takes, roughly and rather too long."""
    cell = plan.cells[cell_id]
    params, weights = plan.params(cell.benchmark), weights_gb(plan, cell_id)
    steps = (largest(params.get("limit")) + largest(params.get("scored")) or STEPS) + _context(plan, cell_id) // 100
    method = plan.methods[cell.method]
    sides = 2 if method.reference and plan.timed(cell_id) else 1
    at_once = [(method.params | method.points[point]).get("per_step") or 1 for point in cell.points]
    passes = sides * _items(params) * sum(steps / tokens for tokens in at_once)
    return 1 + passes * weights * SECONDS["gpu" if _gpus(plan, weights) else "processor"] / 60


def sizes(plan: Plan, short: float) -> dict[str, list[str]]:
    """Cells by what they ask for, as a name such as ``8gb_4h_1gpu``; ``short`` are those of so many minutes."""
    groups: dict[str, list[str]] = {}
    for key in plan.cells:
        asked = ask(plan, key)
        name = f"{asked['mem_mb'] // 1000}gb_{asked['runtime'] // 60}h" + f"_{asked['gpu']}gpu" * bool(asked["gpu"])
        brief = minutes(plan, key) <= short and not asked["gpu"]
        groups.setdefault("short" if brief else name, []).append(key)
    return groups


def weights_gb(plan: Plan, cell_id: str) -> float:
    """Gigabytes of the weights among a cell's assets."""
    return sum(asset_gb(plan, plan.played_by(key)) for key in plan.cells[cell_id].assets)


def asset_gb(plan: Plan, key: str) -> float:
    """Gigabytes of an asset's safetensors files, as the lock knows them; of a model whose files it does not know yet,
    what its parameters take in 16 bits.
    """
    files = plan.lock[key].files.items()
    known = sum(file.size or 0 for name, file in files if name.endswith(".safetensors")) / 1e9
    return known or next((2 * (model.parameters or 0) for model in plan.models.values() if model.asset == key), 0)


def largest(value) -> int:
    """The largest number of a parameter that may be one, several or none."""
    numbers = value if isinstance(value, list) else [value]
    return int(max((n for n in numbers if isinstance(n, (int, float))), default=0))


def _items(params: dict) -> int:
    """Items of all categories, or prompts in batches of all sizes."""
    groups = next((params[key] for key in ("tasks", "kinds") if params.get(key)), range(CATEGORIES))
    batches = max(1, largest(params.get("pools"))) * max(1, len(params.get("batches") or ()))
    return max(1, largest(params.get("items"))) * (batches if "batches" in params else len(groups))


def _context(plan: Plan, cell_id: str) -> int:
    params = plan.params(plan.cells[cell_id].benchmark)
    tokens = max(largest(params.get(key)) for key in ("context", "max_tokens", "lengths"))
    return max(tokens, largest(params.get("characters")) // 3)


def _gpus(plan: Plan, weights: float) -> int:
    return ceil(4 / 3 * weights / plan.gpu_gb) if plan.gpu_gb else 0


def _size(offered: tuple[int, ...], needed: float, attempt: int) -> int:
    fitting = sum(size < needed for size in offered) + attempt - 1
    return offered[min(fitting, len(offered) - 1)]
