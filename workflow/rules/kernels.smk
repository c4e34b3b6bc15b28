KERNELS = sorted(
    f"parsimony.kernels.{path.stem}"
    for path in Path(SOURCE, "parsimony", "kernels").glob("[a-z]*.py")
)


rule kernels:
    """Compile every kernel for sm_80 and sm_90, GPU or not: cubins, and a manifest of what they need."""
    output:
        manifest="results/kernels/manifest.json",
    log:
        "results/logs/kernels.log",
    conda:
        "../../envs/parsimony.yaml"
    params:
        code=code_version(*KERNELS),
    shell:
        "TRITON_INTERPRET=0 python -m parsimony.kernels.build --out results/kernels 2>&1 | tee {log}"
