rule asset:
    """Fetch or make one asset, verified against the lock; downloads may fail and are tried again."""
    input:
        asset_inputs,
    output:
        "resources/{asset}/manifest.json",
    log:
        "results/logs/assets/{asset}.log",
    conda:
        "../../envs/parsimony.yaml"
    threads: 1  # small networks gain more from training side by side than from a second core
    resources:
        mem_mb=asked_by_recipe("mem_mb"),
        runtime=asked_by_recipe("runtime"),
        gpu=asked_by_recipe("gpu"),
    params:
        version=lambda wildcards: PLAN.assets[wildcards.asset],
    message:
        "asset {wildcards.asset}"
    shell:
        'python -m parsimony.cli asset {wildcards.asset} "${{overrides[@]}}" 2>&1 | tee {log}'


# Nodes of a cluster often have no way out.
use rule asset as download with:
    output:
        f"resources/{{asset,{one_of(DOWNLOADS)}}}/manifest.json",
    retries: 2


ruleorder: download > asset


localrules:
    download,
