"""Prompts and the volumes drawn from them; sharded."""


rule write_prompts:
    input:
        cohort="<results>/cohort/cohort.csv",
        reports="<results>/cohort/reports.csv",
        masks=real_masks,
        config="<results>/config/prompts.json",
    output:
        "<results>/prompts/{set}.csv",
    log:
        "<logs>/write_prompts/{set}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(30),
    message:
        "writing the prompts '{wildcards.set}'"
    shell:
        "python -m medsyn prompts --set {wildcards.set:q} --cohort {input.cohort:q} --reports {input.reports:q}"
        " --masks {input.masks:q} --config {input.config:q} --out {output:q} 2> {log:q}"


rule sample:
    input:
        run="<results>/models/{method}/run.json",
        prompts="<results>/prompts/{set}.csv",
        config="<results>/config/sampling.json",
        volumes=expand("<results>/preprocessed/{shard}", shard=SHARDS),
        masks=expand("<results>/masks/{shard}", shard=SHARDS),
    output:
        directory("<results>/samples/{method}/{set}/{shard}"),
    log:
        "<logs>/sample/{method}/{set}/{shard}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(2000, 2000),
        runtime=shard_minutes(MINUTES_SAMPLE, SAMPLES_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=f"{RESULTS}/state/sample/{{method}}/{{set}}/{{shard}}",
        weights=lambda wildcards, input: Path(input.run).parent,
        num_shards=len(SAMPLE_SHARDS),
        volumes_root=lambda wildcards, input: Path(input.volumes[0]).parent,
        masks_root=lambda wildcards, input: Path(input.masks[0]).parent,
    message:
        "generating volumes: {wildcards.method}, prompts '{wildcards.set}', shard {wildcards.shard} (progress: {log})"
    shell:
        "exec python -m medsyn generate --weights {params.weights:q} --prompts {input.prompts:q}"
        " --shard {wildcards.shard:q}/{params.num_shards:q} --config {input.config:q}"
        " --volumes-root {params.volumes_root:q} --masks-root {params.masks_root:q} --state {params.state:q}"
        " --out {output:q} 2> {log:q}"
