"""Who is in: the embedded phantoms or the user's manifest, validated and split by patient."""


rule render_phantoms:
    input:
        config=LAYOUT.config("phantom"),
    output:
        directory(LAYOUT.phantom("{shard}")),
    log:
        LAYOUT.log("render_phantoms", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(700, 150),
        runtime=minutes(240),
    params:
        num_shards=len(SHARDS),
    message:
        "rendering phantoms and their reports, shard {wildcards.shard}"
    shell:
        "python -m medsyn phantom --config {input.config:q} --shard {wildcards.shard:q}/{params.num_shards:q}"
        " --out {output:q} 2> {log:q}"


rule write_text_only_reports:
    input:
        config=LAYOUT.config("phantom"),
    output:
        LAYOUT.phantom_reports(),
    log:
        LAYOUT.log("write_text_only_reports"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(30),
    message:
        "writing reports without images"
    shell:
        "python -m medsyn phantom --config {input.config:q} --reports-only --out {output:q} 2> {log:q}"


rule validate_cohort:
    input:
        cohort_inputs,
        config=LAYOUT.config("cohort"),
    output:
        cohort=LAYOUT.cohort(),
        rejects=LAYOUT.cohort("rejects"),
        reports=LAYOUT.cohort("reports"),
        given=LAYOUT.cohort("given_labels"),
    log:
        LAYOUT.log("validate_cohort"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        manifests=manifests,
        reports=lambda wildcards: text_only_reports(),
        folder=lambda wildcards, output: Path(output.cohort).parent,
        files=files_of_manifest,
    message:
        "checking the cohort and splitting it by patient"
    shell:
        "python -m medsyn cohort --config {input.config:q} --manifest {params.manifests:q} {params.reports:q}"
        " --out {params.folder:q} 2> {log:q}"
