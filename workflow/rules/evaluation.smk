"""Measures, features and scores of real and sampled volumes: what tables and figures are made from (exhibits.smk)."""


rule measure_cohort:
    input:
        volumes="<results>/preprocessed/{shard}",
        cohort="<results>/cohort/cohort.csv",
        config="<results>/config/measure.json",
    output:
        "<results>/measures/real/{shard}.csv",
    log:
        "<logs>/measure_cohort/{shard}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(*((9000, 400) if NETWORKS_MEASURE else (800, 200))),
        runtime=shard_minutes(MINUTES_MEASURE, VALIDATION_CTS_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference if NETWORKS_MEASURE else 0,
        nodes=1,
    params:
        state=f"{RESULTS}/state/measure_cohort/{{shard}}",
    message:
        "measuring the CTs of the validation split, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn measure --volumes {input.volumes:q} --config {input.config:q}"
        " --cohort {input.cohort:q} --split validation --state {params.state:q} --out {output:q} 2> {log:q}"


rule measure_samples:
    input:
        volumes="<results>/samples/{method}/{set}/{shard}",
        config="<results>/config/measure.json",
    output:
        "<results>/measures/{method}/{set}/{shard}.csv",
    log:
        "<logs>/measure_samples/{method}/{set}/{shard}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(*((9000, 400) if NETWORKS_MEASURE else (800, 200))),
        runtime=shard_minutes(MINUTES_MEASURE, SAMPLES_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference if NETWORKS_MEASURE else 0,
        nodes=1,
    params:
        state=f"{RESULTS}/state/measure_samples/{{method}}/{{set}}/{{shard}}",
    message:
        "measuring generated volumes: {wildcards.method}, prompts '{wildcards.set}', shard {wildcards.shard}"
    shell:
        "exec python -m medsyn measure --volumes {input.volumes:q} --config {input.config:q} --state {params.state:q}"
        " --out {output:q} 2> {log:q}"


rule train_features:
    input:
        store=expand("<results>/store/{shard}", shard=SHARDS),
        labels=REAL_LABELS,
        config="<results>/config/features.json",
    output:
        "<results>/features/extractor.safetensors",
    log:
        "<logs>/train_features.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: CONFIG.compute.num_threads_training
    resources:
        mem_mb=memory_mb(2000, 500),
        runtime=minutes(480),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=f"{RESULTS}/state/train_features",
    message:
        "training the feature extractor of FID and MMD (progress: {log})"
    shell:
        "exec python -m medsyn train-features --config {input.config:q} --store {input.store:q} --labels {input.labels:q}"
        " --state {params.state:q} --out {output:q} 2>> {log:q}"


rule extract_cohort_features:
    input:
        weights="<results>/features/extractor.safetensors",
        volumes="<results>/preprocessed/{shard}",
        cohort="<results>/cohort/cohort.csv",
        config="<results>/config/preprocess.json",
    output:
        "<results>/features/real/{shard}.npz",
    log:
        "<logs>/extract_cohort_features/{shard}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(800, 200),
        runtime=shard_minutes(MINUTES_FEATURES, VALIDATION_CTS_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=f"{RESULTS}/state/extract_cohort_features/{{shard}}",
    message:
        "extracting features of the CTs of the validation split, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn features --weights {input.weights:q} --volumes {input.volumes:q} --config {input.config:q}"
        " --cohort {input.cohort:q} --split validation --state {params.state:q} --out {output:q} 2> {log:q}"


rule extract_sample_features:
    input:
        weights="<results>/features/extractor.safetensors",
        volumes="<results>/samples/{method}/{set}/{shard}",
        config="<results>/config/preprocess.json",
    output:
        "<results>/features/{method}/{set}/{shard}.npz",
    log:
        "<logs>/extract_sample_features/{method}/{set}/{shard}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(800, 200),
        runtime=shard_minutes(MINUTES_FEATURES, SAMPLES_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=f"{RESULTS}/state/extract_sample_features/{{method}}/{{set}}/{{shard}}",
    message:
        "extracting features: {wildcards.method}, prompts '{wildcards.set}', shard {wildcards.shard}"
    shell:
        "exec python -m medsyn features --weights {input.weights:q} --volumes {input.volumes:q} --config {input.config:q}"
        " --state {params.state:q} --out {output:q} 2> {log:q}"


rule classify:
    input:
        cohort=f"{TABLE6_RESULTS}/cohort/cohort.csv",
        labels=TABLE6_LABELS,
        volumes=table6_volumes,
        prompts="<results>/prompts/augmentation.csv",
        samples=samples(REFERENCE, "augmentation"),
        config="<results>/config/augmentation.json",
    output:
        "<results>/classify/{finding}.csv",
    log:
        "<logs>/classify/{finding}.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(2000, 500),
        runtime=minutes(480),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        split=TABLE6_SPLIT,
        method=REFERENCE,
        state=f"{RESULTS}/state/classify/{{finding}}",
    message:
        "cross-validating classifiers of {wildcards.finding} with and without generated volumes"
    shell:
        "exec python -m medsyn classify --finding {wildcards.finding:q} --config {input.config:q} --cohort {input.cohort:q}"
        " --labels {input.labels:q} --volumes {input.volumes:q} --split {params.split:q} --prompts {input.prompts:q}"
        " --samples {input.samples:q} --method-label {params.method:q} --state {params.state:q} --out {output:q} 2>> {log:q}"


rule score_segmentation:
    input:
        prompts="<results>/prompts/segmentation.csv",
        samples=samples(REFERENCE, "segmentation"),
        masks=real_masks,
    output:
        "<results>/segmentation_scores.csv",
    log:
        "<logs>/score_segmentation.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(800, 200),
        runtime=minutes(60),
    message:
        "scoring generated masks of given images"
    shell:
        "python -m medsyn score-segmentation --prompts {input.prompts:q} --samples {input.samples:q} --masks {input.masks:q}"
        " --out {output:q} 2> {log:q}"
