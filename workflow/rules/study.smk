"""The reader study: prompts of the volumes that it shows, and the blind folder. No other rule asks for them."""


ruleorder: write_study_prompts > write_prompts


rule write_study_prompts:
    input:
        config=LAYOUT.config("study"),
    output:
        LAYOUT.prompts(STUDY_PROMPTS),
    log:
        LAYOUT.log("write_study_prompts"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(10),
    message:
        "writing the prompts of the reader study"
    shell:
        "python -m medsyn study prompts --config {input.config:q} --out {output:q} 2> {log:q}"


# Protected: Snakemake never makes it again, so that a study which readers have begun stays.
rule make_study:
    input:
        config=LAYOUT.config("study"),
        samples=study_samples,
        prompts=LAYOUT.prompts(STUDY_PROMPTS),
        volumes=real_volumes,
        cohort=LAYOUT.cohort(),
        labels=LAYOUT.labels(),
    output:
        study=protected(f"{LAYOUT.study()}/study.json"),
        key=protected(LAYOUT.study_key()),
    log:
        LAYOUT.log("make_study"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(2000),
        runtime=minutes(60),
    params:
        results=lambda wildcards: LAYOUT.root,
        out=lambda wildcards: LAYOUT.study(),
    message:
        "making the reader study"
    shell:
        "python -m medsyn study make --config {input.config:q} --results {params.results:q} --out {params.out:q}"
        " --key {output.key:q} 2> {log:q}"
