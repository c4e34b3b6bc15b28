rule cell:
    """Measure one (benchmark, model, method); takes all cores, since two computing processes disturb each other."""
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
    threads: workflow.cores
    params:
        version=lambda wildcards: PLAN.cells[wildcards.cell].version,
    message:
        "cell {wildcards.cell}"
    shell:
        'python -m parsimony.cli cell {wildcards.cell} "${{overrides[@]}}" 2>&1 | tee {log}'
