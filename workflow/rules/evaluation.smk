"""Measures, features, tables, figures and the report. Every table and figure is one call of one verb on plain files."""


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
        state=f"{RESULTS}/state/classify/{{finding}}",
    message:
        "cross-validating classifiers of {wildcards.finding} with and without generated volumes"
    shell:
        "exec python -m medsyn classify --finding {wildcards.finding:q} --config {input.config:q} --cohort {input.cohort:q}"
        " --labels {input.labels:q} --volumes {input.volumes:q} --split {params.split:q} --prompts {input.prompts:q}"
        " --samples {input.samples:q} --method-label medsyn --state {params.state:q} --out {output:q} 2>> {log:q}"


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


rule table1:
    input:
        cohort="<results>/cohort/cohort.csv",
        real_measures=REAL_MEASURES,
        real_features=REAL_FEATURES,
        measures=[path for name in SHAPE_METHODS for path in measures(name, "reports")],
        features=[path for name in SHAPE_METHODS for path in features(name, "reports")],
        config="<results>/config/evaluation.json",
    output:
        table=report(
            "<results>/eval/table1.csv",
            caption="../report/table1.rst",
            category="Tables",
        ),
        provenance="<results>/eval/table1.json",
    log:
        "<logs>/table1.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        groups=[
            *group("--features", "real", REAL_FEATURES),
            *group("--measures", "real", REAL_MEASURES),
            *(
                word
                for name in SHAPE_METHODS
                for word in group("--features", name, features(name, "reports"))
            ),
            *(
                word
                for name in SHAPE_METHODS
                for word in group("--measures", name, measures(name, "reports"))
            ),
        ],
        labels=lambda wildcards: full_names(SHAPE_METHODS),
    message:
        "Table I: FID, MMD, airway volume"
    shell:
        "python -m medsyn table 1 --config {input.config:q} --cohort {input.cohort:q} --split validation {params.groups:q}"
        " {params.labels:q} --out {output.table:q} 2> {log:q}"


rule finding_table:
    input:
        prompts="<results>/prompts/pairs.csv",
        measures=measures(REFERENCE, "pairs"),
        config="<results>/config/evaluation.json",
    output:
        table=report(
            "<results>/eval/table{number}.csv",
            caption="../report/finding_table.rst",
            category="Tables",
        ),
        provenance="<results>/eval/table{number}.json",
    log:
        "<logs>/table{number}.log",
    wildcard_constraints:
        number="[234]",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    message:
        "Table {wildcards.number}: prompt pairs of one finding"
    shell:
        "python -m medsyn table {wildcards.number:q} --config {input.config:q} --prompts {input.prompts:q}"
        " --measures medsyn {input.measures:q} --out {output.table:q} 2> {log:q}"


rule table5:
    input:
        scores="<results>/segmentation_scores.csv",
        config="<results>/config/evaluation.json",
    output:
        table=report(
            "<results>/eval/table5.csv",
            caption="../report/table5.rst",
            category="Tables",
        ),
        provenance="<results>/eval/table5.json",
    log:
        "<logs>/table5.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    message:
        "Table V: Dice with and without text"
    shell:
        "python -m medsyn table 5 --config {input.config:q} --scores {input.scores:q} --out {output.table:q} 2> {log:q}"


rule table6:
    input:
        scores=expand(
            "<results>/classify/{finding}.csv",
            finding=CONFIG.evaluation.augmentation.findings,
        ),
        config="<results>/config/evaluation.json",
    output:
        table=report(
            "<results>/eval/table6.csv",
            caption="../report/table6.rst",
            category="Tables",
        ),
        provenance="<results>/eval/table6.json",
    log:
        "<logs>/table6.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        labels=lambda wildcards: full_names([REFERENCE]),
    message:
        "Table VI: data augmentation"
    shell:
        "python -m medsyn table 6 --config {input.config:q} --scores {input.scores:q} {params.labels:q} --out {output.table:q} 2> {log:q}"


rule table7:
    input:
        prompts=expand(
            "<results>/prompts/{set}.csv",
            set=sorted({report_prompts(name) for name in TEXT_METHODS}),
        ),
        measures=[
            path
            for name in TEXT_METHODS
            for path in measures(name, report_prompts(name))
        ],
        config="<results>/config/evaluation.json",
    output:
        table=report(
            "<results>/eval/table7.csv",
            caption="../report/table7.rst",
            category="Tables",
        ),
        provenance="<results>/eval/table7.json",
    log:
        "<logs>/table7.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        groups=[
            word
            for name in TEXT_METHODS
            for word in group(
                "--measures",
                CONFIG.methods[name].text_encoder,
                measures(name, report_prompts(name)),
            )
        ],
    message:
        "Table VII: language models"
    shell:
        "python -m medsyn table 7 --config {input.config:q} --prompts {input.prompts:q} {params.groups:q}"
        " --out {output.table:q} 2> {log:q}"


rule figure3:
    input:
        cohort="<results>/cohort/cohort.csv",
        volumes=real_volumes,
        samples=[path for name in SHAPE_METHODS for path in samples(name, "reports")],
    output:
        report(
            "<results>/eval/figures/figure3.png",
            caption="../report/figure3.rst",
            category="Figures",
        ),
    log:
        "<logs>/figure3.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        groups=[
            *group("--volumes", "real", real_volumes()),
            *(
                word
                for name in SHAPE_METHODS
                for word in group("--volumes", name, samples(name, "reports"))
            ),
        ],
        phantom=PHANTOM_FLAG,
    message:
        "Figure 3"
    shell:
        "python -m medsyn figure 3 --cohort {input.cohort:q} --split validation {params.groups:q} {params.phantom:q}"
        " --out {output:q} 2> {log:q}"


rule figure4:
    input:
        cohort="<results>/cohort/cohort.csv",
        labels="<results>/labels.csv",
        volumes=real_volumes,
        prompts="<results>/prompts/pairs.csv",
        samples=samples(REFERENCE, "pairs"),
    output:
        report(
            "<results>/eval/figures/figure4.png",
            caption="../report/figure4.rst",
            category="Figures",
        ),
    log:
        "<logs>/figure4.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        phantom=PHANTOM_FLAG,
    message:
        "Figure 4"
    shell:
        "python -m medsyn figure 4 --cohort {input.cohort:q} --labels {input.labels:q} --volumes real {input.volumes:q}"
        " --volumes medsyn {input.samples:q} --prompts {input.prompts:q} {params.phantom:q} --out {output:q} 2> {log:q}"


rule figure5:
    input:
        prompts="<results>/prompts/pairs.csv",
        measures=measures(REFERENCE, "pairs"),
    output:
        report(
            "<results>/eval/figures/figure5.png",
            caption="../report/figure5.rst",
            category="Figures",
        ),
    log:
        "<logs>/figure5.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        phantom=PHANTOM_FLAG,
    message:
        "Figure 5"
    shell:
        "python -m medsyn figure 5 --prompts {input.prompts:q} --measures medsyn {input.measures:q} {params.phantom:q}"
        " --out {output:q} 2> {log:q}"


rule figure6:
    input:
        prompts="<results>/prompts/controlled.csv",
        volumes=real_volumes,
        masks=real_masks,
        samples=samples(REFERENCE, "controlled"),
    output:
        report(
            "<results>/eval/figures/figure6.png",
            caption="../report/figure6.rst",
            category="Figures",
        ),
    log:
        "<logs>/figure6.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        phantom=PHANTOM_FLAG,
    message:
        "Figure 6"
    shell:
        "python -m medsyn figure 6 --prompts {input.prompts:q} --volumes real {input.volumes:q} --volumes medsyn {input.samples:q}"
        " --masks {input.masks:q} {params.phantom:q} --out {output:q} 2> {log:q}"


rule hero_figure:
    input:
        cohort="<results>/cohort/cohort.csv",
        volumes=real_volumes,
        samples=samples(REFERENCE, "reports"),
    output:
        report(
            "<results>/eval/figures/hero.png",
            caption="../report/hero.rst",
            category="Figures",
        ),
    log:
        "<logs>/hero_figure.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        phantom=PHANTOM_FLAG,
    message:
        "the README's picture"
    shell:
        "python -m medsyn figure hero --cohort {input.cohort:q} --split validation --volumes real {input.volumes:q}"
        " --volumes medsyn {input.samples:q} {params.phantom:q} --out {output:q} 2> {log:q}"


rule report:
    input:
        expand("<results>/eval/table{number}.csv", number=range(1, 8)),
        expand("<results>/eval/figures/{name}.png", name=FIGURES),
        "<results>/qc/masks.csv",
        "<results>/qc/alignment.csv",
    output:
        report(
            "<results>/report.html", caption="../report/report.rst", category="Report"
        ),
    log:
        "<logs>/report.log",
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        results=lambda wildcards, output: Path(output[0]).parent,
        phantom=PHANTOM_FLAG,
    message:
        "writing the report"
    shell:
        "python -m medsyn report --results {params.results:q} {params.phantom:q} --out {output:q} 2> {log:q}"
