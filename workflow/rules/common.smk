import os
import shlex
import sys
from pathlib import Path

# The pipeline runs from a checkout; the package need not be installed for that.
sys.path.insert(0, str(Path(workflow.basedir) / "src"))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [sys.path[0], os.environ.get("PYTHONPATH")])
)

from parsimony.errors import UserError
from parsimony.plan import make_plan
from parsimony.fingerprint import code_version

# `suite` names a suite; `set` holds further overrides of the configuration, as `parsimony plan` takes them.
OVERRIDES = shlex.split(f"suite={config.get('suite', 'quick')} {config.get('set', '')}")
try:
    PLAN = make_plan(OVERRIDES, Path(workflow.basedir))
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{PLAN.name}"
PYTHON = shlex.quote(sys.executable)
ARGUMENTS = shlex.join(OVERRIDES)


def needed_assets(wildcards):
    """Manifests of the assets that a cell uses."""
    return [
        f"resources/{key}/manifest.json" for key in PLAN.cells[wildcards.cell].assets
    ]


def needed_cells(wildcards):
    """Records of the cells that a cell compares with or learns from."""
    return [
        f"{RESULTS}/cells/{key}.parquet" for key in PLAN.cells[wildcards.cell].needs
    ]


def asset_inputs(wildcards):
    """Manifests of the assets that an asset is made from."""
    return [
        f"resources/{key}/manifest.json" for key in PLAN.lock[wildcards.asset].inputs
    ]


wildcard_constraints:
    asset="[a-z0-9_]+",
    cell="[a-z0-9_-]+",
