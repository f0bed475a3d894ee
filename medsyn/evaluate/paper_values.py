"""The numbers printed in the paper, for orientation beside a run's own tables, and never mixed with them.

MedSyn (IEEE TMI 2024), Tables I to VII: 8,752 patients' CTs at 256^3, TotalSegmentator's masks, Med3D's weights.
"""

from __future__ import annotations

PAPER: dict[int, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    1: (
        ("Method", "FID", "MMD", "Airway (mm³)"),
        (
            ("HA-GAN", "0.023", "0.054", "20,400 ± 7,300"),
            ("Medical Diffusion", "0.013", "0.022", "17,700 ± 9,300"),
            ("MedSyn", "0.009", "0.019", "33,400 ± 11,900"),
            ("MedSyn without shape", "–", "–", "19,900 ± 10,500"),
            ("Real", "–", "–", "45,800 ± 14,500"),
        ),
    ),
    2: (
        ("Prompt", "Pleural effusion (L)"),
        (("No effusion", "0.00 ± 0.00"), ("Large effusion", "1.73 ± 0.22")),
    ),
    3: (("Prompt", "%LAA-950"), (("No bullae", "0.019 ± 0.018"), ("With bullae", "1.4 ± 3.5"))),
    4: (("Prompt", "CTR"), (("No cardiomegaly", "0.48 ± 0.06"), ("With cardiomegaly", "0.75 ± 0.24"))),
    5: (
        ("Text", "Airway Dice", "Lobe Dice"),
        (("without", "0.70 ± 0.14", "0.69 ± 0.12"), ("with", "0.75 ± 0.10", "0.77 ± 0.12")),
    ),
    6: (
        ("Method", "Effusion acc. %", "F1", "Opacity acc. %", "F1"),
        (
            ("Baseline", "90.7 ± 3.2", "0.79 ± 0.05", "61.0 ± 2.2", "0.72 ± 0.03"),
            ("Augmented", "94.0 ± 0.2", "0.84 ± 0.01", "62.0 ± 1.5", "0.75 ± 0.00"),
        ),
    ),
    7: (
        ("Prompt", "Generic LM (ml)", "Biomedical LM (ml)"),
        (("Without effusion", "0.6 ± 1.4", "0.0 ± 0.0"), ("With effusion", "2.4 ± 5.9", "1725.7 ± 219.5")),
    ),
}
"""Table number -> (header, rows)."""

_TESTS = (
    " p: the paper's one-tailed two-sample t-test (Welch's), which takes the two groups as independent. p, paired: the"
    " one-tailed paired t-test over {unit}; it assumes independent {unit} and normal differences. d_z: mean difference"
    " over the standard deviation of the differences, with 95 % bounds of the noncentral t distribution."
)
_BY_SEED = _TESTS.format(unit="seeds") + (
    " The samples with and without the finding share their seeds; several sentences of one seed count once."
)
_FOUND = " Every generated volume is counted; “found”: those in which {anatomy} found."
_VERDICT = " “Not a chest”: share that `medsyn inspect` would reject."

CAPTIONS: dict[int, tuple[str, str]] = {
    1: (
        "Table I. Quality of synthesis",
        "Fréchet distance (FID) and maximum mean discrepancy (MMD) to the real validation volumes, on features of the"
        " network named below; lower is closer. FIDs are comparable only within this table. The row “real” is the"
        " distance between two random halves of the real volumes; compare it with the column “FID, half”, where every"
        " method is given at the same, smaller number of volumes. A volume without airway counts as 0 mm³; “airway"
        " found” says in how many there is one. Both tests ask whether the airway is larger than without shape. A pair"
        " is the two methods' volumes of one prompt and seed." + _TESTS.format(unit="prompts") + _VERDICT,
    ),
    2: (
        "Table II. Pleural effusion",
        "Segmented effusion in volumes generated with a prompt and with its reverse; a volume without lungs counts as"
        " 0 ml." + _FOUND.format(anatomy="lungs were") + _BY_SEED + _VERDICT,
    ),
    3: (
        "Table III. Bullous emphysema",
        "Share of lung voxels below −950 HU (%LAA-950) by prompt; a volume without lungs has no value and is counted as"
        " missing." + _FOUND.format(anatomy="lungs were") + _BY_SEED + _VERDICT,
    ),
    4: (
        "Table IV. Cardiomegaly",
        "Cardiothoracic ratio (widest heart over widest inner thorax on one axial level) by prompt; a volume without"
        " heart between two lungs has no value and is counted as missing."
        + _FOUND.format(anatomy="a heart was")
        + _BY_SEED
        + _VERDICT,
    ),
    5: (
        "Table V. Segmentation by generation",
        "The image is given and the model fills in the masks: Dice of airway and lobes (mean of five) with the tool's"
        " masks of the same image, without and with the patient's report as prompt. Both share subject and seed."
        + _TESTS.format(unit="subjects"),
    ),
    6: (
        "Table VI. Data augmentation",
        "Cross-validated classifiers trained on real volumes alone and with generated volumes added, for the same"
        " number of optimiser steps; tested on real volumes only. Mean ± standard deviation over the folds. p, paired:"
        " the one-tailed paired t-test of augmented against baseline over the folds, which share training volumes and"
        " are not independent, so that p is too small; the paper has no test here.",
    ),
    7: (
        "Table VII. Language model",
        "Segmented effusion in volumes of two models that differ only in the language model; a volume without lungs"
        " counts as 0 ml." + _FOUND.format(anatomy="lungs were") + _BY_SEED + _VERDICT,
    ),
}
"""Table number -> (title, what it shows)."""

FIGURES: dict[str, tuple[str, str]] = {
    "figure3": ("Figure 3. Generated and real volumes", "One method a row; the zoom shows the lung-detail window."),
    "figure4": (
        "Figure 4. Prompts and their reverses",
        "Real subjects with a finding, and samples prompted with and without.",
    ),
    "figure5": ("Figure 5. Cardiothoracic ratio by prompt", "Every tick is one generated volume."),
    "figure6": ("Figure 6. Fixed anatomy", "Samples around a fixed mask of a real subject, with different seeds."),
}
"""File stem -> (title, what it shows)."""
