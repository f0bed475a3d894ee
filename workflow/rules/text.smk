"""Language models, their embeddings of every report, and labels parsed from the reports."""


rule pretrain_text:
    input:
        reports=LAYOUT.cohort("reports"),
        config=LAYOUT.config("text_{encoder}"),
    output:
        directory(LAYOUT.text_encoder("{encoder}")),
    log:
        LAYOUT.log("pretrain_text", "{encoder}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: CONFIG.compute.num_threads_training
    resources:
        **training_devices(),
        mem_mb=memory_mb(3000),
        runtime=480,
    params:
        launcher=launcher(),
    message:
        "pretraining the {wildcards.encoder} text encoder"
    shell:
        "{params.launcher} -m medsyn pretrain-text --config {input.config:q} --reports {input.reports:q} --out {output:q} 2> {log:q}"


rule embed_reports:
    input:
        encoder=LAYOUT.text_encoder("{encoder}"),
        reports=LAYOUT.cohort("reports"),
        config=LAYOUT.config("text_{encoder}"),
    output:
        LAYOUT.embeddings("{encoder}"),
    log:
        LAYOUT.log("embed_reports", "{encoder}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(4000),
        runtime=minutes(240),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    message:
        "embedding every report with the {wildcards.encoder} text encoder"
    shell:
        "python -m medsyn embed --encoder {input.encoder:q} --config {input.config:q} --reports {input.reports:q}"
        " --out {output:q} 2> {log:q}"


rule label_reports:
    input:
        reports=LAYOUT.cohort("reports"),
    output:
        LAYOUT.labels(),
    log:
        LAYOUT.log("label_reports"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    message:
        "labelling the reports by rule"
    shell:
        "python -m medsyn label {input.reports:q} --out {output:q} 2> {log:q}"
