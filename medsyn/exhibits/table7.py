"""Table VII: the effect of a prompt by language model."""

from __future__ import annotations

from medsyn.config import EvaluationConfig
from medsyn.exhibits.base import Exhibit, PaperTable, Table
from medsyn.exhibits.captions import BY_SEED, VERDICT, found
from medsyn.exhibits.finding_tables import OPTIONS, prompt_pair_table, reference_takes_text
from medsyn.exhibits.inputs import Inputs
from medsyn.exhibits.needs import Need
from medsyn.exhibits.sources import Sources


def needs(sources: Sources) -> list[Need]:
    """Return the effusion prompts and the measures of every language model's answers.

    The reference answers all prompt pairs for Tables II to IV, the other methods those of effusion alone.
    """
    methods = sources.language_models()
    sets = {method: "pairs" if method == sources.reference else "effusion_pairs" for method in methods}
    encoders = [sources.text_encoder(method) or method for method in methods]
    names = [name if encoders.count(name) == 1 else f"{name} ({m})" for m, name in zip(methods, encoders, strict=True)]
    return [
        sources.prompts(*sorted(set(sets.values()))),
        *(sources.made("measures", method, prompt_set) for method, prompt_set in sets.items()),
        *(Need("label", (method, name)) for method, name in zip(methods, names, strict=True)),
    ]


def make(inputs: Inputs, config: EvaluationConfig) -> Table:
    """Return Table VII of the prompts and measures that were given."""
    prompts = inputs.require("prompts")
    inputs.require_group("measures")
    measures = {inputs.full_name(method): measured for method, measured in inputs.measures().items()}
    finding = inputs.finding or "pleural_effusion"
    return prompt_pair_table(finding, prompts, measures, config, method_column="language_model")


TABLE7 = Exhibit(
    name="table7",
    kind="table",
    title="Table VII. Language model",
    caption=(
        "Segmented effusion (ml) by prompt in volumes of models that differ in the language model; a volume without"
        " lungs counts as 0 ml." + found("lungs were") + BY_SEED + VERDICT
    ),
    needs=needs,
    options=(*OPTIONS, "label"),
    make=make,
    paper=PaperTable(
        ("Prompt", "Generic LM (ml)", "Biomedical LM (ml)"),
        (("Without effusion", "0.6 ± 1.4", "0.0 ± 0.0"), ("With effusion", "2.4 ± 5.9", "1725.7 ± 219.5")),
    ),
    in_all=reference_takes_text,
)
