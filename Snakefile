# Parsimony: `snakemake --cores N` measures the quick suite and writes its report;
# `snakemake --cores N --config suite=local` another one. Workflow files hold no logic: the plan decides.
from snakemake.utils import min_version

min_version("9.19")


include: "workflow/rules/common.smk"
include: "workflow/rules/assets.smk"
include: "workflow/rules/cells.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/kernels.smk"


# What cells would each compute alike, and share while a suite is measured.
onsuccess:
    shell(f"rm -rf {RESULTS}/kept")


rule all:
    default_target: True
    input:
        f"{RESULTS}/report/index.html",
