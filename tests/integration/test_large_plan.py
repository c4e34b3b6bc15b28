"""A plan of 2,000 cells: every cell is one job of the dry run, and no job is left out."""

import re

import yaml


def test_two_thousand_cells_dry_run(project):
    folder = project.folder

    def read(name):
        return yaml.safe_load((folder / name).read_text())

    benchmark, method = read("configs/benchmark/spec_mix.yaml"), read("configs/method/prompt_lookup.yaml")
    benchmarks, methods = [f"bench_{n}" for n in range(40)], [f"method_{n}" for n in range(49)]
    for key in benchmarks:
        project.write(f"configs/benchmark/{key}.yaml", benchmark | {"uses": [key]})
    for key in methods:
        project.write(f"configs/method/{key}.yaml", method)
    paper = read("configs/paper/token_recycling.yaml")
    paper["study"].append({"methods": ["greedy", *methods], "benchmarks": benchmarks})
    project.write("configs/paper/token_recycling.yaml", paper)

    output = project.snakemake("--dry-run")
    planned = set(re.findall(r"^\s*(?:Job \d+: )?cell (\S+)", output, re.M))
    assert len(planned) == 2007
    assert {f"{b}--smollm2_135m_instruct--{m}" for b in benchmarks for m in ("greedy", *methods)} <= planned
