"""Who is in: the embedded phantoms or the user's manifest, validated and split by patient."""


rule render_phantoms:
    input:
        config="<results>/config/phantom.json",
    output:
        directory("<results>/phantom/{shard}"),
    log:
        "<logs>/render_phantoms/{shard}.log",
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
        config="<results>/config/phantom.json",
    output:
        "<results>/phantom/text_only.csv",
    log:
        "<logs>/write_text_only_reports.log",
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
        config="<results>/config/cohort.json",
    output:
        cohort="<results>/cohort/cohort.csv",
        rejects="<results>/cohort/rejects.csv",
        reports="<results>/cohort/reports.csv",
        given="<results>/cohort/given_labels.csv",
    log:
        "<logs>/validate_cohort.log",
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
