import shlex
import sys
from pathlib import Path

# The pipeline runs from a checkout; the package need not be installed for that.
SOURCE = str(Path(workflow.basedir) / "src")
sys.path.insert(0, SOURCE)

from parsimony.errors import UserError
from parsimony.plan import make_plan
from parsimony.fingerprint import code_version
from parsimony.resources import ask, ask_recipe, sizes

# `suite` names a suite, and `scale=rehearsal` goes through one of the published scale with small stand-ins; `set` holds
# further overrides of the configuration, as `parsimony plan` takes them.
OVERRIDES = [f"{key}={config[key]}" for key in ("suite", "scale") if key in config]
OVERRIDES += shlex.split(config.get("set", ""))
try:
    PLAN = make_plan(OVERRIDES, Path(workflow.basedir))
    # `papers` names papers whose cells alone are measured and published; the others stay as they are.
    WANTED = PLAN.cells
    if "papers" in config:
        WANTED = [
            key for paper in config["papers"].split() for key in PLAN.cells_of(paper)
        ]
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{PLAN.name}"

# Of a cell that is timed: all of this machine's, and 8 of a cluster, where no number is given.
try:
    CORES = workflow.cores
except WorkflowError:
    CORES = 8

# Where Python is and how the suite was chosen are no part of a job's identity: moving the environment reruns nothing.
shell.prefix(
    f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
    f"PYTHONPATH={shlex.quote(SOURCE)}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
    f"overrides=({shlex.join(OVERRIDES)}); "
)


def needed_assets(wildcards):
    """Manifests of the assets that a cell uses."""
    return [
        f"resources/{PLAN.played_by(key)}/manifest.json"
        for key in PLAN.cells[wildcards.cell].assets
    ]


def needed_cells(wildcards):
    """Records of the cells that a cell compares with or learns from."""
    return [
        f"{RESULTS}/cells/{key}.parquet" for key in PLAN.cells[wildcards.cell].needs
    ]


def asset_inputs(wildcards):
    """Manifests of the assets that an asset is made from."""
    return [
        f"resources/{key}/manifest.json" for key in PLAN.lock[wildcards.asset].requires
    ]


# Cells by what they ask of a cluster; those of at most one minute run where Snakemake runs.
SIZES = sizes(PLAN, float(config.get("short", 1)))
DOWNLOADS = [
    key for key in PLAN.assets if PLAN.lock[key].source not in ("generated", "trained")
]


def one_of(keys):
    """The regular expression that matches these names alone."""
    return "|".join(keys) or "(?!)"


def asked(resource):
    """What a cell asks of a cluster, as Snakemake wants it."""
    return lambda wildcards, attempt: ask(PLAN, wildcards.cell, attempt)[resource]


def asked_by_recipe(resource):
    """What the recipe of an asset asks of a cluster."""
    return lambda wildcards, attempt: ask_recipe(PLAN, wildcards.asset, attempt)[
        resource
    ]


wildcard_constraints:
    asset="[a-z0-9_]+",
    cell="[a-z0-9_-]+",
