"""CTs to the model's grid, their masks, and the arrays that training reads; sharded.

What a stopped shard has finished is kept in its state folder, which is no output, as a training's. `exec` lets SIGTERM
reach the program, not a shell that would end before it.
"""


rule preprocess:
    input:
        cohort=LAYOUT.cohort(),
        config=LAYOUT.config("preprocess"),
    output:
        directory(LAYOUT.preprocessed("{shard}")),
    log:
        LAYOUT.log("preprocess", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(700, 150),
        runtime=shard_minutes(MINUTES_PREPROCESS, CTS_PER_SHARD),
    params:
        state=LAYOUT.state("preprocess", "{shard}"),
        files=files_of_shard,
        num_shards=len(SHARDS),
    message:
        "bringing CTs to the model's grid, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn preprocess --cohort {input.cohort:q} --shard {wildcards.shard:q}/{params.num_shards:q}"
        " --config {input.config:q} --state {params.state:q} --out {output:q} 2> {log:q}"


rule segment:
    input:
        volumes=LAYOUT.preprocessed("{shard}"),
        config=LAYOUT.config("masks"),
    output:
        directory(LAYOUT.masks("{shard}")),
    log:
        LAYOUT.log("segment", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(*((9000, 400) if NETWORKS_SEGMENT else (700, 200))),
        runtime=shard_minutes(MINUTES_SEGMENT, CTS_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference if NETWORKS_SEGMENT else 0,
        nodes=1,
    params:
        state=LAYOUT.state("segment", "{shard}"),
    message:
        "segmenting lobes, airway and vessels, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn segment --volumes {input.volumes:q} --config {input.config:q} --state {params.state:q}"
        " --out {output:q} 2> {log:q}"


rule score_masks:
    input:
        masks=[LAYOUT.masks(shard) for shard in SHARDS],
        cohort=LAYOUT.cohort(),
    output:
        report(
            LAYOUT.quality("masks"),
            caption="../report/masks.rst",
            category="Quality control",
        ),
    log:
        LAYOUT.log("score_masks"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(700, 50),
        runtime=minutes(240),
    message:
        "scoring the masks against the truth"
    shell:
        "python -m medsyn mask-qc --masks {input.masks:q} --cohort {input.cohort:q} --out {output:q} 2> {log:q}"


rule score_alignment:
    input:
        volumes=[LAYOUT.preprocessed(shard) for shard in SHARDS],
        masks=[LAYOUT.masks(shard) for shard in SHARDS],
        cohort=LAYOUT.cohort(),
        labels=LAYOUT.labels(),
    output:
        report(
            LAYOUT.quality("alignment"),
            caption="../report/alignment.rst",
            category="Quality control",
        ),
    log:
        LAYOUT.log("score_alignment"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(700),
        runtime=minutes(60),
    message:
        "counting registered and rejected CTs by finding"
    shell:
        "python -m medsyn alignment-qc --volumes {input.volumes:q} --masks {input.masks:q} --cohort {input.cohort:q}"
        " --labels {input.labels:q} --out {output:q} 2> {log:q}"


rule build_store:
    input:
        volumes=LAYOUT.preprocessed("{shard}"),
        masks=LAYOUT.masks("{shard}"),
        cohort=LAYOUT.cohort(),
        config=LAYOUT.config("preprocess"),
    output:
        directory(LAYOUT.store("{shard}")),
    log:
        LAYOUT.log("build_store", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(700, 50),
        runtime=shard_minutes(MINUTES_STORE, CTS_PER_SHARD),
    message:
        "packing training arrays, shard {wildcards.shard}"
    shell:
        "python -m medsyn store --volumes {input.volumes:q} --masks {input.masks:q} --cohort {input.cohort:q}"
        " --config {input.config:q} --out {output:q} 2> {log:q}"
