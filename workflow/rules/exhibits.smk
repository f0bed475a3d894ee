"""Tables, figures and the report: each is one call of one verb on the files that its specification in medsyn.exhibits names."""

for EXHIBIT in EXHIBITS:

    rule:
        name:
            f"make_{EXHIBIT.name}"
        input:
            **EXHIBIT.inputs(SOURCES),
        output:
            **exhibit_outputs(EXHIBIT),
        log:
            LAYOUT.log(f"make_{EXHIBIT.name}"),
        conda:
            "../../envs/medsyn.yaml"
        threads: 1
        resources:
            mem_mb=memory_mb(EXHIBIT.memory_mb),
            runtime=minutes(EXHIBIT.minutes),
        params:
            command=lambda wildcards, exhibit=EXHIBIT: exhibit.command(SOURCES),
            caption=lambda wildcards, exhibit=EXHIBIT: exhibit.full_caption(CAPTIONS),
        message:
            EXHIBIT.full_title(CAPTIONS)
        shell:
            "python -m medsyn {params.command:q} --out {output.exhibit:q} 2> {log:q}"


rule report:
    input:
        **inputs_of(REPORT_NEEDS),
    output:
        report(LAYOUT.report(), caption="../report/report.rst", category="Report"),
    log:
        LAYOUT.log("report"),
    conda:
        "../../envs/medsyn.yaml"
    threads: 1
    resources:
        mem_mb=memory_mb(1000),
        runtime=minutes(60),
    params:
        command=lambda wildcards: words_of(REPORT_NEEDS),
    message:
        "writing the report"
    shell:
        "python -m medsyn report {params.command:q} --out {output:q} 2> {log:q}"
