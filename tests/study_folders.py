"""A small reader study for the tests of its server: nine items for two or more readers, over random volumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsyn.files import sha256
from medsyn.study.definition import SUMS_FILE, Study
from medsyn.volume import Volume, write_volume

OPTIONS = {
    "consolidation": "Consolidation",
    "pleural_effusion": "Pleural effusion",
    "cardiomegaly": "Cardiomegaly",
    "no_abnormality": "No abnormality",
    "other": "Other",
}
RECOGNITION = "Which finding does this CT show?"
RANKING = "Rank the CTs by how well the lobes and fissures are preserved."
INTRODUCTION = "You will see chest CTs.\n\nPlease look at each as you do in your daily work."


def write_study(
    folder: Path, num_readers: int = 2, *, volumes: Sequence[Volume] | None = None, num_items: int = 7
) -> Study:
    """Write a study with two practice items and `num_items` (two or more) others; return it.

    Every third item is a ranking, and the last one repeats the first.

    volumes: what is shown, four or more of one grid; small random ones by default.
    """
    volumes = volumes or [_noise(seed) for seed in range(6)]
    names = [f"{0xA1B2C3D400000000 + 7919 * index:016x}" for index in range(len(volumes))]
    (folder / "volumes").mkdir(parents=True)
    for name, volume in zip(names, volumes, strict=True):
        write_volume(folder / "volumes" / f"{name}.nii.gz", volume)
    items = [_item(index, names) for index in range(num_items + 1)]
    items.append({**items[2], "id": f"i{num_items + 1}", "repeats": "i2"})
    readers = [_reader(f"R{index + 1:02d}", items, index) for index in range(num_readers)]
    study = Study(title="Chest CT study", seed=0, introduction=INTRODUCTION, items=items, readers=readers)
    (folder / "study.json").write_text(json.dumps(study.model_dump(mode="json")), encoding="utf-8")
    files = [folder / "study.json", *sorted((folder / "volumes").iterdir())]
    sums = "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files)
    (folder / SUMS_FILE).write_text(sums, encoding="utf-8")
    return study


def _noise(seed: int) -> Volume:
    shape = (6, 8, 10)
    return Volume(np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16), (4.0, 4.0, 4.0))


def _item(index: int, names: Sequence[str]) -> dict[str, object]:
    practice = index < 2
    if index % 3 == 1:
        start = index % (len(names) - 3)
        shown = {"task": "ranking", "structure": "lobes", "question": RANKING, "volumes": names[start : start + 4]}
    else:
        options = [{"value": value, "label": label} for value, label in OPTIONS.items()]
        shown = {"task": "recognition", "question": RECOGNITION, "volumes": [names[index % len(names)]]}
        shown["options"] = options
    return {"id": f"i{index}", "practice": practice, **shown}


def _reader(code: str, items: Sequence[dict[str, object]], index: int) -> dict[str, object]:
    asked = items[2:]
    turned = [*items[:2], *asked[index % len(asked) :], *asked[: index % len(asked)]]
    order = [{"item": item["id"], "volumes": list(reversed(item["volumes"]))} for item in turned]
    return {"code": code, "group": ("senior", "junior")[index % 2], "order": order}
