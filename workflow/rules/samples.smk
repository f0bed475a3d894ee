"""Prompts and the volumes drawn from them; sharded."""


rule write_prompts:
    input:
        cohort=LAYOUT.cohort(),
        reports=LAYOUT.cohort("reports"),
        masks=real_masks,
        config=LAYOUT.config("prompts"),
    output:
        LAYOUT.prompts("{set}"),
    log:
        LAYOUT.log("write_prompts", "{set}"),
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
        files=sampler_files,
        prompts=LAYOUT.prompts("{set}"),
        config=sampler_settings,
        volumes=real_volumes,
        masks=real_masks,
    output:
        directory(LAYOUT.samples("{method}", "{set}", "{shard}")),
    log:
        LAYOUT.log("sample", "{method}", "{set}", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(2000, 2000),
        runtime=shard_minutes(MINUTES_SAMPLE, SAMPLES_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=LAYOUT.state("sample", "{method}", "{set}", "{shard}"),
        files=sampler_state,
        num_shards=len(SAMPLE_SHARDS),
    message:
        "sampling volumes: {wildcards.method}, prompts '{wildcards.set}', shard {wildcards.shard} (progress: {log})"
    shell:
        "exec python -m medsyn sample --config {input.config:q} --files {input.files:q} --prompts {input.prompts:q}"
        " --shard {wildcards.shard:q}/{params.num_shards:q} --volumes {input.volumes:q} --masks {input.masks:q}"
        " --state {params.state:q} --out {output:q} 2> {log:q}"
