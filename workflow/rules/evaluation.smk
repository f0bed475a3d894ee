"""Measures, features and scores of real and sampled volumes: what tables and figures are made from (exhibits.smk)."""


rule measure_cohort:
    input:
        volumes=LAYOUT.preprocessed("{shard}"),
        cohort=LAYOUT.cohort(),
        config=LAYOUT.config("measure"),
    output:
        LAYOUT.real_measures("{shard}"),
    log:
        LAYOUT.log("measure_cohort", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(*((9000, 400) if NETWORKS_MEASURE else (800, 200))),
        runtime=shard_minutes(MINUTES_MEASURE, VALIDATION_CTS_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference if NETWORKS_MEASURE else 0,
        nodes=1,
    params:
        state=LAYOUT.state("measure_cohort", "{shard}"),
    message:
        "measuring the CTs of the validation split, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn measure --volumes {input.volumes:q} --config {input.config:q}"
        " --cohort {input.cohort:q} --split validation --state {params.state:q} --out {output:q} 2> {log:q}"


rule measure_samples:
    input:
        volumes=LAYOUT.samples("{method}", "{set}", "{shard}"),
        config=LAYOUT.config("measure"),
    output:
        LAYOUT.measures("{method}", "{set}", "{shard}"),
    log:
        LAYOUT.log("measure_samples", "{method}", "{set}", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(*((9000, 400) if NETWORKS_MEASURE else (800, 200))),
        runtime=shard_minutes(MINUTES_MEASURE, SAMPLES_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference if NETWORKS_MEASURE else 0,
        nodes=1,
    params:
        state=LAYOUT.state("measure_samples", "{method}", "{set}", "{shard}"),
    message:
        "measuring generated volumes: {wildcards.method}, prompts '{wildcards.set}', shard {wildcards.shard}"
    shell:
        "exec python -m medsyn measure --volumes {input.volumes:q} --config {input.config:q} --state {params.state:q}"
        " --out {output:q} 2> {log:q}"


rule measure_cohort_regions:
    input:
        volumes=LAYOUT.preprocessed("{shard}"),
        cohort=LAYOUT.cohort(),
        config=LAYOUT.config("regions"),
    output:
        LAYOUT.regions(REAL, "{shard}"),
    log:
        LAYOUT.log("measure_cohort_regions", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(*((9000, 400) if NETWORKS_MEASURE else (800, 300))),
        runtime=shard_minutes(MINUTES_REGIONS, REGION_CTS_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference if NETWORKS_MEASURE else 0,
        nodes=1,
    params:
        state=LAYOUT.state("measure_cohort_regions", "{shard}"),
    message:
        "measuring CTs by side and lobe, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn regions --volumes {input.volumes:q} --cohort {input.cohort:q} --config {input.config:q}"
        " --state {params.state:q} --out {output:q} 2> {log:q}"


rule measure_sample_regions:
    input:
        volumes=LAYOUT.samples("{method}", "faithfulness", "{shard}"),
        samples=lambda wildcards: samples(wildcards.method, "faithfulness"),
        prompts=LAYOUT.prompts("faithfulness"),
        config=LAYOUT.config("regions"),
    output:
        LAYOUT.regions("{method}", "{shard}"),
    log:
        LAYOUT.log("measure_sample_regions", "{method}", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(*((9000, 400) if NETWORKS_MEASURE else (800, 300))),
        runtime=shard_minutes(MINUTES_REGIONS, SAMPLES_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference if NETWORKS_MEASURE else 0,
        nodes=1,
    params:
        state=LAYOUT.state("measure_sample_regions", "{method}", "{shard}"),
    message:
        "measuring generated volumes by side and lobe: {wildcards.method}, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn regions --volumes {input.volumes:q} --samples {input.samples:q} --prompts {input.prompts:q}"
        " --config {input.config:q} --state {params.state:q} --out {output:q} 2> {log:q}"


rule diagnose:
    input:
        run=LAYOUT.run("{method}"),
        store=[LAYOUT.store(shard) for shard in SHARDS],
        embeddings=lambda wildcards: LAYOUT.embeddings(
            CONFIG.methods[wildcards.method].text_encoder
        ),
        sampling=LAYOUT.config("sampling"),
        config=LAYOUT.config("diagnostics"),
    output:
        table=LAYOUT.diagnostics("{method}"),
        provenance=LAYOUT.diagnostics_provenance("{method}"),
    log:
        LAYOUT.log("diagnose", "{method}"),
    wildcard_constraints:
        method="|".join(MODELS),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(*((9000, 2000) if NETWORKS_MEASURE else (2000, 2000))),
        runtime=minutes(240),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    message:
        "testing the networks of {wildcards.method} one by one on validation volumes"
    shell:
        "python -m medsyn diagnose --weights {input.run:q} --store {input.store:q} --embeddings {input.embeddings:q}"
        " --config {input.config:q} --out {output.table:q} 2> {log:q}"


rule train_features:
    input:
        store=[LAYOUT.store(shard) for shard in SHARDS],
        labels=labels_in(LAYOUT),
        config=LAYOUT.config("features"),
    output:
        LAYOUT.extractor(),
    log:
        LAYOUT.log("train_features"),
    conda:
        "../../envs/medsyn.yaml"
    threads: CONFIG.compute.num_threads_training
    resources:
        mem_mb=memory_mb(2000, 500),
        runtime=minutes(480),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=LAYOUT.state("train_features"),
    message:
        "training the feature extractor of FID and MMD (progress: {log})"
    shell:
        "exec python -m medsyn train-features --config {input.config:q} --store {input.store:q} --labels {input.labels:q}"
        " --state {params.state:q} --out {output:q} 2>> {log:q}"


rule extract_cohort_features:
    input:
        weights=LAYOUT.extractor(),
        volumes=LAYOUT.preprocessed("{shard}"),
        cohort=LAYOUT.cohort(),
        config=LAYOUT.config("preprocess"),
    output:
        LAYOUT.real_features("{shard}"),
    log:
        LAYOUT.log("extract_cohort_features", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(800, 200),
        runtime=shard_minutes(MINUTES_FEATURES, VALIDATION_CTS_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=LAYOUT.state("extract_cohort_features", "{shard}"),
    message:
        "extracting features of the CTs of the validation split, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn features --weights {input.weights:q} --volumes {input.volumes:q} --config {input.config:q}"
        " --cohort {input.cohort:q} --split validation --state {params.state:q} --out {output:q} 2> {log:q}"


rule extract_training_features:
    input:
        weights=LAYOUT.extractor(),
        volumes=LAYOUT.preprocessed("{shard}"),
        cohort=LAYOUT.cohort(),
        config=LAYOUT.config("preprocess"),
    output:
        LAYOUT.training_features("{shard}"),
    log:
        LAYOUT.log("extract_training_features", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(800, 200),
        runtime=shard_minutes(MINUTES_FEATURES, CTS_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=LAYOUT.state("extract_training_features", "{shard}"),
    message:
        "extracting features of the CTs of the training split, shard {wildcards.shard}"
    shell:
        "exec python -m medsyn features --weights {input.weights:q} --volumes {input.volumes:q} --config {input.config:q}"
        " --cohort {input.cohort:q} --split train --state {params.state:q} --out {output:q} 2> {log:q}"


rule extract_sample_features:
    input:
        weights=LAYOUT.extractor(),
        volumes=LAYOUT.samples("{method}", "{set}", "{shard}"),
        config=LAYOUT.config("preprocess"),
    output:
        LAYOUT.features("{method}", "{set}", "{shard}"),
    log:
        LAYOUT.log("extract_sample_features", "{method}", "{set}", "{shard}"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(800, 200),
        runtime=shard_minutes(MINUTES_FEATURES, SAMPLES_PER_SHARD),
        gpu=CONFIG.compute.num_gpus_inference,
        nodes=1,
    params:
        state=LAYOUT.state("extract_sample_features", "{method}", "{set}", "{shard}"),
    message:
        "extracting features: {wildcards.method}, prompts '{wildcards.set}', shard {wildcards.shard}"
    shell:
        "exec python -m medsyn features --weights {input.weights:q} --volumes {input.volumes:q} --config {input.config:q}"
        " --state {params.state:q} --out {output:q} 2> {log:q}"


rule find_nearest:
    input:
        cohort=LAYOUT.cohort(),
        volumes=real_volumes,
        samples=[path for method in COMPARED for path in samples(method, "reports")],
        features=[path for paths in FEATURES_OF.values() for path in paths],
    output:
        LAYOUT.nearest(),
    log:
        LAYOUT.log("find_nearest"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(4000),
        runtime=minutes(480),
    params:
        samples=[
            word
            for method in COMPARED
            for word in ("--samples", method, *samples(method, "reports"))
        ],
        features=[
            word
            for label, paths in FEATURES_OF.items()
            for word in ("--features", label, *paths)
        ],
    message:
        "searching the training and validation CTs that generated volumes are nearest to"
    shell:
        "python -m medsyn nearest --cohort {input.cohort:q} --real {input.volumes:q} {params.samples:q}"
        " {params.features:q} --out {output:q} 2> {log:q}"


rule classify:
    input:
        cohort=TABLE6_LAYOUT.cohort(),
        labels=labels_in(TABLE6_LAYOUT),
        volumes=table6_volumes,
        prompts=LAYOUT.prompts("augmentation"),
        samples=samples(REFERENCE, "augmentation"),
        config=LAYOUT.config("augmentation"),
    output:
        LAYOUT.classification("{finding}"),
    log:
        LAYOUT.log("classify", "{finding}"),
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
        state=LAYOUT.state("classify", "{finding}"),
    message:
        "cross-validating classifiers of {wildcards.finding} with and without generated volumes"
    shell:
        "exec python -m medsyn classify --finding {wildcards.finding:q} --config {input.config:q} --cohort {input.cohort:q}"
        " --labels {input.labels:q} --volumes {input.volumes:q} --split {params.split:q} --prompts {input.prompts:q}"
        " --samples {input.samples:q} --method-label {params.method:q} --state {params.state:q} --out {output:q} 2>> {log:q}"


rule score_segmentation:
    input:
        prompts=LAYOUT.prompts("segmentation"),
        samples=samples(REFERENCE, "segmentation"),
        masks=real_masks,
    output:
        LAYOUT.segmentation_scores(),
    log:
        LAYOUT.log("score_segmentation"),
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
