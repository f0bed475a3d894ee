"""Figures and report: orientation and aspect of the panels, files written, equal bytes, absent parts named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsyn.cli import main
from medsyn.evaluate.measure_names import MEASURES
from medsyn.exhibits.numbers import number, p_value
from medsyn.exhibits.panels import aspect_of, slice_of
from medsyn.files import write_csv
from medsyn.report.tables import display_table
from medsyn.volume import Volume, write_volume

PNG = b"\x89PNG\r\n\x1a\n"


def body(seed: int) -> np.ndarray:
    """(16, 16, 16) int16: soft tissue with two dark boxes."""
    hu = np.random.default_rng(seed).normal(40, 20, size=(16, 16, 16))
    hu[4:14, 4:12, 2:7] = hu[4:14, 4:12, 9:14] = -850
    return hu.astype(np.int16)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Real subjects, samples of prompt pairs, masks and measures of a miniature run."""
    subjects = [{"subject_id": f"s{k}", "split": "validation", "report_id": f"s{k}"} for k in range(3)]
    write_csv(tmp_path / "cohort/cohort.csv", subjects, ["subject_id", "split", "report_id"])
    labels = [{"id": f"s{k}", "pleural_effusion": k % 2, "emphysema": 1, "cardiomegaly": 0} for k in range(3)]
    write_csv(tmp_path / "labels.csv", labels, ["id", "pleural_effusion", "emphysema", "cardiomegaly"])
    spacing = (18.0, 19.0, 19.0)
    for k in range(3):
        write_volume(tmp_path / f"preprocessed/0/s{k}/volume.nii.gz", Volume(body(k), spacing))
        for name in ("lobes", "airway", "vessels"):
            mask = (body(k) < -500).astype(np.uint8)
            write_volume(tmp_path / f"masks/0/s{k}/{name}.nii.gz", Volume(mask, spacing))
    prompts, measured = [], []
    for finding in ("pleural_effusion", "cardiomegaly"):
        for sign in ("with", "without"):
            for k in range(3):
                name = f"{finding}_{sign}_{k}"
                write_volume(tmp_path / f"samples/{name}/volume.nii.gz", Volume(body(10 + k), spacing))
                text = f"A sentence about {finding}."
                prompts.append({"sample_id": name, "prompt_type": f"{finding}/{sign}", "text": text, "seed": k})
                measured.append({"subject_id": name, "cardiothoracic_ratio": 0.4 + 0.01 * k + 0.2 * (sign == "with")})
    write_csv(tmp_path / "pairs.csv", prompts, ["sample_id", "prompt_type", "text", "seed"])
    write_csv(tmp_path / "measures.csv", measured, ["subject_id", *MEASURES, "reason"])
    controlled = [
        {"sample_id": f"cardiomegaly_with_{k}", "prompt_type": "controlled", "text": "x", "fix_lobes": "s0"}
        for k in range(3)
    ]
    write_csv(tmp_path / "controlled.csv", controlled, ["sample_id", "prompt_type", "text", "fix_lobes", "fix_airway"])
    return tmp_path


def figure(run: Path, which: str, *arguments: str) -> bytes:
    out = run / "eval/figures" / f"figure{which}.png"
    assert main(["figure", which, *arguments, "--phantom", "--quiet", "--out", str(out)]) == 0
    return out.read_bytes()


def arguments(run: Path) -> dict[str, list[str]]:
    volumes = ["--volumes", "real", str(run / "preprocessed/0"), "--volumes", "medsyn", str(run / "samples")]
    cohort = ["--cohort", str(run / "cohort/cohort.csv")]
    pairs = ["--prompts", str(run / "pairs.csv")]
    return {
        "3": [*volumes, *cohort, "--split", "validation", "--num", "2"],
        "4": [*volumes, *cohort, *pairs, "--labels", str(run / "labels.csv")],
        "5": [*pairs, "--measures", "medsyn", str(run / "measures.csv")],
        "6": [*volumes, "--prompts", str(run / "controlled.csv"), "--masks", str(run / "masks/0")],
        "hero": volumes,
    }


@pytest.mark.parametrize("which", ["3", "4", "5", "6", "hero"])
def test_every_figure_is_written_twice_alike(run: Path, which: str) -> None:
    first = figure(run, which, *arguments(run)[which])
    assert first.startswith(PNG)
    assert len(first) > 10_000
    assert figure(run, which, *arguments(run)[which]) == first


def test_a_figure_depends_on_its_volumes(run: Path) -> None:
    before = figure(run, "hero", *arguments(run)["hero"])
    write_volume(run / "preprocessed/0/s0/volume.nii.gz", Volume(body(99), (18.0, 19.0, 19.0)))
    assert figure(run, "hero", *arguments(run)["hero"]) != before


def test_figure_without_its_samples_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [*arguments(run)["4"], "--prompts", str(run / "controlled.csv")]
    assert main(["figure", "4", *wrong, "--out", str(run / "f.png")]) == 2
    assert "prompt pair" in capsys.readouterr().err
    assert not (run / "f.png").exists()


def test_display_convention() -> None:
    """Array (z inf-sup, y post-ant, x right-left): superior and anterior up, right on the viewer's left."""
    array = np.zeros((4, 6, 8))
    array[3, 0, 0], array[0, 5, 7] = 1.0, 2.0  # superior posterior right; inferior anterior left
    assert slice_of(array, "axial", 0.99)[-1, 0] == 1  # posterior is down, right is on the left
    assert slice_of(array, "axial", 0.0)[0, -1] == 2  # anterior is up, left is on the right
    assert slice_of(array, "coronal", 0.0)[0, 0] == 1  # superior is up
    assert slice_of(array, "coronal", 0.99)[-1, -1] == 2
    assert slice_of(array, "sagittal", 0.0)[0, -1] == 1  # posterior on the viewer's right
    assert slice_of(array, "sagittal", 0.99)[-1, 0] == 2  # anterior on the viewer's left


def test_true_aspect() -> None:
    volume = Volume(np.zeros((2, 2, 2)), (5.0, 2.0, 1.0))
    assert [aspect_of(volume, plane) for plane in ("axial", "coronal", "sagittal")] == [2.0, 5.0, 2.5]


def test_report_of_a_run_and_of_nothing(run: Path) -> None:
    figure(run, "5", *arguments(run)["5"])
    columns = ["prompt_type", "n", *(f"effusion_volume_ml_{part}" for part in ("mean", "std", "ci_low", "ci_high"))]
    rows = [
        {"prompt_type": "pleural_effusion/without", "n": 3, "effusion_volume_ml_mean": 12.5},
        {"prompt_type": "pleural_effusion/with", "n": 3, "effusion_volume_ml_mean": 1234.5, "p_value": 0.0004},
    ]
    write_csv(run / "eval/table2.csv", rows, [*columns, "p_value", "num_missing", "prompt"])
    assert main(["report", "--results", str(run), "--phantom", "--out", str(run / "report.html")]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "procedural phantoms, not patients" in page
    assert "1,234" in page or "1,235" in page
    assert "&lt; 0.001" in page
    assert page.count("data:image/png;base64,") == 1
    assert "http://" not in page and "https://" not in page
    empty = run / "nothing"
    empty.mkdir()
    assert main(["report", "--results", str(empty), "--out", str(run / "empty.html")]) == 0
    page = (run / "empty.html").read_text(encoding="utf-8")
    assert "not part of the results" in page
    assert "procedural phantoms" not in page
    assert main(["report", "--results", str(run / "absent"), "--out", str(run / "x.html")]) == 2


def test_cells_of_the_report() -> None:
    row = {"method": "m", "label": "MedSyn", "n": "4", "fid": "0.5", "fid_ci_low": "0.4", "fid_ci_high": "0.6"}
    row |= {"fid_half": "1", "dice_mean": "0.123456", "dice_std": "0.01", "dice_ci_low": "", "dice_ci_high": ""}
    row |= {"note": "Half.", "feature_extractor": "net"}
    header, cells, notes = display_table([row])
    assert header == ["Method", "n", "FID", "FID, half", "dice"]
    assert [cell["main"] for cell in cells[0]] == ["MedSyn", "4", "0.5", "1", "0.123 ± 0.01"]
    assert cells[0][2]["below"] == "[0.4, 0.6]"
    assert notes == ["Feature extractor: net.", "Note: Half."]
    counted = {"num_found": "3", "num_volumes": "16", "num_failed": "1", "not_chest_fraction": "0.0625"}
    counted |= {"p_paired": "0.0002", "effect_size": "1.5", "effect_size_ci_low": "0.7", "effect_size_ci_high": "2.2"}
    counted |= {"n_pairs": "15", "n_units": "15", "num_unpaired": "1", "airway_dice_n": "4"}
    header, cells, _ = display_table([counted])
    assert header == ["found", "not a chest", "p, paired", "d_z", "pairs"]
    assert [cell["main"] for cell in cells[0]] == ["3 of 16", "6 %", "< 0.001", "1.5", "15"]
    assert cells[0][3]["below"] == "[0.7, 2.2]"
    cost = {"num_parameters": "52518210", "training_eflop": "3.104e-05", "training_hours": "0.12", "device": "A_100"}
    header, cells, _ = display_table([cost, dict.fromkeys(cost, "")])
    assert header == ["Parameters", "Training, operations", "Training, hours of the device", "Sampling, device"]
    assert [cell["main"] for cell in cells[0]] == ["52.5 M", "31 TFLOP", "0.12", "A_100"]
    assert [cell["main"] for cell in cells[1]] == ["–"] * 4
    assert [number(text) for text in ("12345.6", "123.45", "0.00012345", "", "7")] == [
        "12,346",
        "123.5",
        "0.000123",
        "–",
        "7",
    ]
    assert (p_value("0.0123"), p_value("1e-9"), p_value("")) == ("0.012", "< 0.001", "–")
