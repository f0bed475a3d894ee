"""The two diffusion networks of every method.

The state folder is no output: Snakemake deletes the outputs of a failed job, and a killed training must go on where it was.
Running the same command again resumes it. Its time request is what partitions allow and queues like, not what it needs: a job
that its limit stops after progress is requeued (docs/cluster.md).
"""


rule train_low_res:
    input:
        store=expand("<results>/store/{shard}", shard=SHARDS),
        embeddings=lambda wildcards: f"{RESULTS}/text/{encoder_of(wildcards)}/embeddings.json",
        config="<results>/config/low_res_{method}.json",
    output:
        weights="<results>/models/{method}/low_res.safetensors",
        metrics="<results>/models/{method}/low_res_metrics.csv",
        preview="<results>/models/{method}/low_res_preview.png",
    log:
        "<logs>/train_low_res/{method}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: CONFIG.compute.num_threads_training
    resources:
        **training_devices(),
        mem_mb=memory_mb(2000, 3000),
        runtime=480,
    params:
        state=f"{RESULTS}/state/{{method}}/low_res",
        launcher=launcher(),
    message:
        "training the low-resolution network of {wildcards.method} (progress: {log})"
    shell:
        "{params.launcher} -m medsyn train --config {input.config:q} --store {input.store:q}"
        " --embeddings {input.embeddings:q} --state {params.state:q} --out {output.weights:q} 2>> {log:q}"


rule train_super_res:
    input:
        store=expand("<results>/store/{shard}", shard=SHARDS),
        config="<results>/config/super_res_{method}.json",
    output:
        weights="<results>/models/{method}/super_res.safetensors",
        metrics="<results>/models/{method}/super_res_metrics.csv",
        preview="<results>/models/{method}/super_res_preview.png",
    log:
        "<logs>/train_super_res/{method}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: CONFIG.compute.num_threads_training
    resources:
        **training_devices(),
        mem_mb=memory_mb(2000, 3000),
        runtime=480,
    params:
        state=f"{RESULTS}/state/{{method}}/super_res",
        launcher=launcher(),
    message:
        "training the super-resolution network of {wildcards.method} (progress: {log})"
    shell:
        "{params.launcher} -m medsyn train --config {input.config:q} --store {input.store:q}"
        " --state {params.state:q} --out {output.weights:q} 2>> {log:q}"


rule assemble_model:
    input:
        low_res="<results>/models/{method}/low_res.safetensors",
        super_res=lambda wildcards: f"{RESULTS}/models/{super_res_donor(wildcards.method)}/super_res.safetensors",
        text_encoder=lambda wildcards: f"{RESULTS}/text/{encoder_of(wildcards)}/model",
        config="<results>/config/sampling.json",
    output:
        "<results>/models/{method}/run.json",
    log:
        "<logs>/assemble_model/{method}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(10),
    message:
        "assembling {wildcards.method}"
    shell:
        "python -m medsyn assemble --label {wildcards.method:q} --low-res {input.low_res:q} --super-res {input.super_res:q}"
        " --text-encoder {input.text_encoder:q} --sampling {input.config:q} --out {output:q} 2> {log:q}"
