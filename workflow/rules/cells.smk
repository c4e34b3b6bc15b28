rule cell:
    """Measure one (benchmark, model, method); takes all cores if it times, one if it only counts and compares."""
    input:
        assets=needed_assets,
        cells=needed_cells,
    output:
        records=f"{RESULTS}/cells/{{cell}}.parquet",
        outputs=f"{RESULTS}/outputs/{{cell}}.parquet",
    log:
        f"{RESULTS}/logs/{{cell}}.log",
    conda:
        "../../envs/parsimony.yaml"
    threads: lambda wildcards: workflow.cores if PLAN.timed(wildcards.cell) else 1
    params:
        version=lambda wildcards: PLAN.cells[wildcards.cell].version,
    message:
        "cell {wildcards.cell}"
    shell:
        'python -m parsimony.cli cell {wildcards.cell} "${{overrides[@]}}" 2>&1 | tee {log}'
