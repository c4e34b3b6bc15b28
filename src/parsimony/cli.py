"""`parsimony`: plan, measure, report."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from parsimony.errors import UserError

EXIT_USER_ERROR = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command; what a user can mend is one sentence on stderr and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"parsimony: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(
            f"parsimony: the package {error.name!r} is missing in {sys.prefix}; run `make install`, or "
            "`pip install -r envs/requirements.txt`",
            file=sys.stderr,
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return EXIT_USER_ERROR


def plan_command(options) -> None:
    from parsimony.plan import make_plan
    from parsimony.resources import ask, ask_recipe

    plan = make_plan(options.overrides)
    if options.format == "json":
        print(json.dumps(plan.as_json(), indent=1))
        return

    def asked(ask_of, key: str) -> str:
        """What a job asks for, where that was wanted."""
        if not options.resources:
            return ""
        sizes = ask_of(plan, key)
        return f"{sizes['gpu']:4} {sizes['mem_mb'] // 1000:4} {sizes['runtime'] // 60:5}  "

    print(f"suite {plan.name}: {plan.suite.title}\n\n{len(plan.cells)} cells")
    if options.resources:
        print(f"  {'GPUs':>4} {'GB':>4} {'hours':>5}  what a job asks of a cluster at its first attempt")
    for cell in plan.cells.values():
        print(f"  {asked(ask, cell.id)}{cell.id}  [{', '.join(cell.points)}]")
    print(f"\n{len(plan.assets)} assets")
    for key, version in plan.assets.items():
        hint = "" if plan.lock[key].locked else f"  (not locked: run `parsimony lock {key}`)"
        print(f"  {asked(ask_recipe, key)}{key}  {plan.lock[key].source}  {version}{hint}")


def asset_command(options) -> None:
    from parsimony.assets import fetch
    from parsimony.plan import make_plan

    plan = make_plan(options.overrides)
    print(f"{options.asset}: {fetch(options.asset, plan.lock, plan.root / 'resources')}")


def lock_command(options) -> None:
    from parsimony.assets import hub, read_lock
    from parsimony.plan import find_root

    root = find_root()
    lock_file = root / "configs" / "assets.lock.yaml"
    rows = read_lock(lock_file)
    keys = [key for key, row in rows.items() if row.source == "hub"] if options.all else options.assets
    if not keys and not options.all:
        raise UserError("name the assets to lock, or give --all for all hub assets")
    for key in keys:
        done = hub.lock(key, rows, root / "resources", lock_file)
        row = read_lock(lock_file)[key]
        size = sum(file.size for file in row.files.values())
        print(f"{key}: {'locked' if done else 'was locked'} at {row.revision}, {len(row.files)} files, {size} bytes")


def ship_command(options) -> None:
    from parsimony.assets.sources import ship
    from parsimony.plan import make_plan

    plan = make_plan(options.overrides)
    lock_file = plan.root / "configs" / "assets.lock.yaml"
    print(ship(options.asset, plan.lock, plan.root / "resources", lock_file))


def cell_command(options) -> None:
    from parsimony.cell import run_cell
    from parsimony.plan import make_plan

    plan = make_plan(options.overrides, only=options.cell)
    run_cell(plan, options.cell, _places(plan))


def run_command(options) -> int:
    return _snakemake(options, options.targets)


def reproduce_command(options) -> int:
    from parsimony.plan import make_plan
    from parsimony.report import evaluate
    from parsimony.report.ledger import ledger_markdown

    options.overrides = ["suite=local", *options.overrides]
    plan = make_plan(options.overrides)
    cells = plan.cells_of(options.paper)
    status = _snakemake(options, [str(_places(plan).records(cell).relative_to(plan.root)) for cell in cells])
    if not options.dry_run:
        _, ledger, _ = evaluate(options.overrides)
        print(ledger_markdown([row for row in ledger if row["paper"] == options.paper]))
    return status


def debug_command(options) -> None:
    from parsimony.plan import make_plan
    from parsimony.reproducer import cut

    plan = make_plan(options.overrides)
    folder = cut(plan, options.cell, options.item, _places(plan), options.overrides, plan.root / options.out)
    print(f"{folder}: `python reproduce.py` in it measures item {options.item!r} again, and needs nothing outside")


def _snakemake(options, targets: list[str]) -> int:
    from parsimony.plan import find_root

    root = find_root()
    command = [sys.executable, "-m", "snakemake", "--cores", str(options.cores or "all"), "--directory", str(root)]
    command += ["--snakefile", str(root / "Snakefile")] + targets
    suites = [o.partition("=")[2] for o in options.overrides if o.startswith("suite=")]
    others = [o for o in options.overrides if not o.startswith("suite=")]
    config = [f"suite={suite}" for suite in suites[-1:]] + ([f"set={' '.join(others)}"] if others else [])
    command += ["--dry-run"] if options.dry_run else []
    command += ["--config", *config] if config else []
    return subprocess.run(command).returncode


def report_command(options) -> None:
    from parsimony.plan import make_plan
    from parsimony.report import write_report

    plan = make_plan(options.overrides)
    places = _places(plan)
    print(write_report(plan, places.results / "cells", places.results / "report"))


def publish_command(options) -> None:
    from parsimony.plan import make_plan
    from parsimony.report import publish

    plan = make_plan(options.overrides)
    print(publish(plan, _places(plan).results / "cells"))


def published_command(options) -> None:
    from parsimony.report import rebuild_published

    print(rebuild_published())


def claims_command(options) -> None:
    from parsimony.report import evaluate
    from parsimony.report.ledger import ledger_markdown

    _, ledger, _ = evaluate(options.overrides)
    print(json.dumps(ledger, indent=1) if options.format == "json" else ledger_markdown(ledger))


def coverage_command(options) -> None:
    from parsimony.report import evaluate
    from parsimony.report.ledger import coverage_markdown

    _, _, coverage = evaluate(options.overrides)
    print(json.dumps(coverage, indent=1) if options.format == "json" else coverage_markdown(coverage))


def bench_command(options) -> None:
    from parsimony import bench
    from parsimony.plan import make_plan

    measure, as_text = {
        "decoder": (bench.bench_decoder, bench.decoder_text),
        "suffix": (bench.bench_suffix, bench.suffix_text),
    }[options.what]
    result = measure(make_plan(options.overrides))
    print(json.dumps(result, indent=1) if options.format == "json" else as_text(result))


def gpu_check_command(options) -> None:
    from parsimony.kernels import bench

    bench.run(options)


def schemas_command(options) -> None:
    from parsimony.config import schemas
    from parsimony.plan import find_root

    folder = find_root() / "workflow" / "schemas"
    folder.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text)
    print(folder)


def doctor_command(options) -> int:
    from parsimony.doctor import examine

    return examine()


def _places(plan):
    from parsimony.cell import Places

    return Places(plan.root / "resources", plan.root / "results" / plan.name)


def _parser() -> argparse.ArgumentParser:
    from parsimony import __version__

    parser = argparse.ArgumentParser("parsimony", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name, run, about, formats=False):
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run, overrides=[])
        if formats:
            command.add_argument("--format", choices=("text", "json"), default="text")
        return command

    def take_overrides(command):
        about = "such as suite=local or method.token_recycling.params.hot=false"
        command.add_argument("overrides", nargs="*", metavar="override", help=about)

    plan = add("plan", plan_command, "list the cells and assets of a suite", formats=True)
    plan.add_argument("--resources", action="store_true", help="with what each cell asks of a cluster")
    take_overrides(plan)
    run = add("run", run_command, "measure a suite and write its report (a short form of snakemake)")
    reproduce = add("reproduce", reproduce_command, "measure one paper's study and print its rows of the ledger")
    reproduce.add_argument("paper")
    for command in (run, reproduce):
        command.add_argument("--cores", type=int, help="all if not given")
        command.add_argument("--dry-run", "-n", action="store_true", help="show what would be done")
    take_overrides(reproduce)
    run.add_argument("--target", dest="targets", action="append", default=[], help="a rule or file")
    take_overrides(run)
    take_overrides(add("claims", claims_command, "the ledger: each published claim with its verdict", formats=True))
    take_overrides(add("coverage", coverage_command, "what is built and measured of each paper", formats=True))
    take_overrides(add("report", report_command, "tables, figures and the page from a suite's records"))
    take_overrides(add("publish", publish_command, "copy a suite's records to results/published and rebuild it"))
    add("published", published_command, "rebuild results/published from its committed records")
    asset = add("asset", asset_command, "fetch or make one asset")
    asset.add_argument("asset")
    take_overrides(asset)
    lock = add("lock", lock_command, "pin assets from the hub: write commit, sizes and SHA-256, and fetch them")
    lock.add_argument("assets", nargs="*", metavar="asset")
    lock.add_argument("--all", action="store_true", help="every hub asset that is not locked yet")
    ship = add("ship", ship_command, "run the recipe of a shipped asset again and lock what it made")
    ship.add_argument("asset")
    take_overrides(ship)
    cell = add("cell", cell_command, "measure one cell (goes on where an earlier try stopped)")
    cell.add_argument("cell")
    take_overrides(cell)
    debug = add("debug", debug_command, "cut out of a cell what measures one of its items again, on any machine")
    debug.add_argument("cell")
    debug.add_argument("item")
    debug.add_argument("--out", default="debug", help="folder to put it in")
    take_overrides(debug)
    bench = add(
        "bench",
        bench_command,
        "time our decoder against transformers, or the suffix tree at a million tokens",
        formats=True,
    )
    bench.add_argument("what", choices=("decoder", "suffix"))
    take_overrides(bench)
    check = add("gpu-check", gpu_check_command, "check the kernels on this machine's GPU and time them")
    check.add_argument("--out", default="results/published/gpu", help="folder of the results")
    check.add_argument("--kernel", action="append", help="only this one (may be given again)")
    check.add_argument("--tune", action="store_true", help="also try other tiles (minutes a kernel)")
    check.add_argument("--rehearse", action="store_true", help="checks alone, interpreted, where there is no GPU")
    about = "also time references as torch compiles them, unless that takes longer"
    check.add_argument("--compile-seconds", type=float, default=0.0, help=about)
    add("schemas", schemas_command, "write the JSON schemas of the configuration to workflow/schemas")
    add("doctor", doctor_command, "what this machine has, and what that allows")
    return parser


if __name__ == "__main__":
    sys.exit(main())
