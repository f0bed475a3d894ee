"""One JSON file of settings per stage: editing a stage re-runs that stage and what follows, nothing else."""

STAGE_TEXTS = stage_texts(CONFIG)


rule write_config:
    output:
        LAYOUT.config("{stage}"),
    log:
        LAYOUT.log("write_config", "{stage}"),
    conda:
        "../../envs/medsyn.yaml"
    resources:
        mem_mb=100,
        runtime=5,
    params:
        text=lambda wildcards: STAGE_TEXTS[wildcards.stage],
    message:
        "settings of {wildcards.stage}"
    shell:
        "printf '%s\n' {params.text:q} > {output:q} 2> {log:q}"
