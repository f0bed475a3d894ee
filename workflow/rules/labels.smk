"""Labels that came with the data set, beside those parsed from the reports."""


rule compare_labels:
    input:
        labels=LAYOUT.labels(),
        given=LAYOUT.cohort("given_labels"),
    output:
        report(
            LAYOUT.quality("labels"),
            caption="../report/labels.rst",
            category="Quality control",
        ),
    log:
        LAYOUT.log("compare_labels"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(30),
    message:
        "comparing the labels of the reports with those that came with the data set"
    shell:
        "python -m medsyn label-qc {input.labels:q} --given {input.given:q} --out {output:q} 2> {log:q}"
