# A rule a size, so that jobs which ask alike could go out as one array (docs/decisions/005).
for size, cells in SIZES.items():

    rule:
        # Measure one (benchmark, model, method); takes all cores if it times, one if it only counts and compares.
        name:
            f"cell_{size}"
        input:
            assets=needed_assets,
            cells=needed_cells,
        output:
            records=f"{RESULTS}/cells/{{cell,{one_of(cells)}}}.parquet",
            outputs=f"{RESULTS}/outputs/{{cell,{one_of(cells)}}}.parquet",
        log:
            f"{RESULTS}/logs/{{cell}}.log",
        conda:
            "../../envs/parsimony.yaml"
        threads: lambda wildcards: CORES if PLAN.timed(wildcards.cell) else 1
        resources:
            mem_mb=asked("mem_mb"),
            runtime=asked("runtime"),
            gpu=asked("gpu"),
        params:
            version=lambda wildcards: PLAN.cells[wildcards.cell].version,
        message:
            "cell {wildcards.cell}"
        shell:
            'python -m parsimony.cli cell {wildcards.cell} "${{overrides[@]}}" 2>&1 | tee {log}'


if "short" in SIZES:

    localrules:
        cell_short,
