REPORT_CODE = code_version("parsimony.report")


localrules:
    report,
    publish,
    published,


rule report:
    """Tables, figures, numbers.tex, ledger, coverage and the page, from the records alone."""
    input:
        expand(f"{RESULTS}/cells/{{cell}}.parquet", cell=WANTED),
    output:
        page=f"{RESULTS}/report/index.html",
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../../envs/parsimony.yaml"
    params:
        code=REPORT_CODE,
        papers=PLAN.papers_version,
    shell:
        'python -m parsimony.cli report "${{overrides[@]}}" 2>&1 | tee {log}'


rule publish:
    """Copy the records of this suite to results/published and rebuild what is derived from them."""
    input:
        expand(f"{RESULTS}/cells/{{cell}}.parquet", cell=WANTED),
    log:
        f"{RESULTS}/logs/publish.log",
    conda:
        "../../envs/parsimony.yaml"
    shell:
        'python -m parsimony.cli publish "${{overrides[@]}}" 2>&1 | tee {log}'


rule published:
    """Tables and figures of results/published again, from the committed records; runs no model."""
    log:
        "results/logs/published.log",
    conda:
        "../../envs/parsimony.yaml"
    shell:
        "python -m parsimony.cli published 2>&1 | tee {log}"
