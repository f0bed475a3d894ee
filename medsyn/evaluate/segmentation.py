"""Segmentation by generation (Table V): the image channel is fixed to a real one, the model fills in the masks.

Compares the generated airway and lobes of each sample with the masks that the cohort's tools made of the same image.
Dice of the airway, and the mean Dice of the five lobes; one row per sample, with or without its report as the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsyn.errors import InputError
from medsyn.evaluate.inputs import is_prompted, list_volumes, read_prompts
from medsyn.files import write_csv
from medsyn.masks.labels import as_labels, dice, mean_label_dice
from medsyn.volume import read_volume

COLUMNS = ("sample_id", "subject_id", "seed", "text", "airway_dice", "lobe_dice", "reason")


def score_segmentation(prompts: Path, samples: Sequence[str], masks: Sequence[str], out: Path) -> None:
    """Write COLUMNS for every prompt row with fix_image; text is `with` or `without` (no prompt).

    A sample without volume or a subject without masks keeps its row, with empty scores and the reason. A mask that is
    missing or cannot be read leaves its own score empty.
    """
    files = list_volumes(samples)
    references = _subject_folders(masks)
    rows: list[dict[str, Any]] = []
    for sample_id, prompt in read_prompts([prompts]).items():
        if not prompt.get("fix_image"):
            continue
        subject = subject_of(prompt["fix_image"])
        row: dict[str, Any] = {"sample_id": sample_id, "subject_id": subject, "seed": prompt.get("seed", "")}
        row["text"] = "with" if is_prompted(prompt) else "without"
        if sample_id not in files:
            row["reason"] = "no generated volume"
        elif subject not in references:
            row["reason"] = "the subject has no masks"
        else:
            row |= _scores(files[sample_id].parent, references[subject])
        rows.append(row)
    if not rows:
        raise InputError(f"{prompts}: no row names fix_image; this is not the prompt set 'segmentation'")
    write_csv(out, rows, COLUMNS)


def subject_of(value: str) -> str:
    """Return the subject that `fix_image` or `fix_lobes` names: an id, or the folder of a path."""
    path = Path(value)
    return path.parent.name if path.name.endswith(".nii.gz") else value


def _scores(generated: Path, reference: Path) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    reasons = []
    for column, name in (("airway_dice", "airway"), ("lobe_dice", "lobes")):
        try:
            score = _score(generated / f"{name}.nii.gz", reference / f"{name}.nii.gz", name)
        except InputError as error:
            reasons.append(str(error))
            continue
        scores[column] = None if score is None else round(score, 6)
        if score is None:
            reasons.append(f"{name} empty in both")
    return scores | {"reason": "; ".join(reasons)}


def _score(generated: Path, reference: Path, name: str) -> float | None:
    """Return the Dice of one structure; None if both masks are empty."""
    missing = next((path for path in (generated, reference) if not path.exists()), None)
    if missing is not None:
        raise InputError(f"no {missing.parent.name}/{missing.name}")
    first, second = (as_labels(read_volume(path).array, name, str(path)) for path in (generated, reference))
    if first.shape != second.shape:
        raise InputError(f"{name}: the generated and the reference mask lie on different grids")
    return dice(first > 0, second > 0) if name == "airway" else mean_label_dice(first, second, range(1, 6))


def _subject_folders(masks: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for root in map(Path, masks):
        if not root.is_dir():
            raise InputError(f"{root}: no such folder of masks")
        folders |= {path.parent.name: path.parent for path in sorted(root.glob("*/*.nii.gz"))}
    return folders
