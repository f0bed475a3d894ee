"""The networks of every method, and the runs that join those of our model.

The state folder is not an output: Snakemake deletes the outputs of a failed job, and a killed training run must go on where it
was. Running the same command again resumes it. Its time request is what partitions allow and queues like, not what it needs: a
job that its limit stops after progress is requeued (docs/cluster.md).
"""


rule train_network:
    input:
        store=[LAYOUT.store(shard) for shard in SHARDS],
        embeddings=network_embeddings,
        networks=networks_before,
        config=LAYOUT.config("{network}_{method}"),
    output:
        weights=LAYOUT.network("{method}", "{network}"),
        metrics=LAYOUT.training_metrics("{method}", "{network}"),
        preview=LAYOUT.training_preview("{method}", "{network}"),
    log:
        LAYOUT.log("train_network", "{method}", "{network}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: CONFIG.compute.num_threads_training
    resources:
        **training_devices(network_devices),
        mem_mb=memory_mb(2000, 3000),
        runtime=480,
    params:
        state=LAYOUT.state("{method}", "{network}"),
        launcher=lambda wildcards: launcher(*network_devices(wildcards)),
        given=training_options,
    message:
        "training the network {wildcards.network} of {wildcards.method} (progress: {log})"
    shell:
        "{params.launcher} -m medsyn train --config {input.config:q} --store {input.store:q} {params.given:q}"
        " --state {params.state:q} --out {output.weights:q} 2>> {log:q}"


rule assemble_model:
    input:
        unpack(model_parts),
        sampling=ancient(LAYOUT.config("sampling")),
    output:
        LAYOUT.run("{method}"),
    log:
        LAYOUT.log("assemble_model", "{method}"),
    wildcard_constraints:
        method="|".join(MODELS),
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
        " --text-encoder {input.text_encoder:q} --sampling {input.sampling:q} --out {output:q} 2> {log:q}"
