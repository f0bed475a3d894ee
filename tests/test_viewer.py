"""`medsyn view`: the page is whole, fetches nothing, escapes what it is given, and draws in a real browser."""

from __future__ import annotations

import base64
import json
import re
import time

import numpy as np
import pytest
from browser import chromium
from conftest import ROOT

from medsyn.cli import main
from medsyn.files import sha256, write_csv, write_json
from medsyn.viewer.cases import Case, choose, find_cases
from medsyn.viewer.page import nifti_bytes, reduced, write_page
from medsyn.volume import Volume, read_volume, write_volume

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def chest(side: int = 24) -> Volume:
    """Return air with a box of soft tissue in the patient's right half."""
    array = np.full((side, side, side), -1000, dtype=np.int16)
    array[:, :, : side // 2] = 40
    return Volume(array, (2.0, 1.5, 1.0), (-10.0, 20.0, 5.0))


@pytest.fixture
def folder(tmp_path):
    """A sample with masks, text of a hostile kind, and measures."""
    sample = tmp_path / "samples" / "one"
    sample.mkdir(parents=True)
    volume = chest()
    write_volume(sample / "volume.nii.gz", volume)
    write_volume(sample / "lobes.nii.gz", volume.with_array((volume.array > 0).astype(np.uint8)))
    write_volume(sample / "airway.nii.gz", Volume(np.ones((8, 8, 8), np.uint8), (1.0, 1.0, 1.0)))
    write_json(sample / "provenance.json", {"text": HOSTILE, "label": "medsyn", "prompt_type": "a/with"})
    write_csv(tmp_path / "m.csv", [{"subject_id": "one", "lung_volume_ml": "3000.4"}], ["subject_id", "lung_volume_ml"])
    return tmp_path


def facts_of(page: str) -> list[dict]:
    return json.loads(re.search(r'id="facts">(.*?)</script>', page, re.S)[1])


def test_the_vendored_file_is_the_one_that_its_page_names():
    page = (ROOT / "medsyn/viewer/niivue/README.md").read_text()
    assert sha256(ROOT / "medsyn/viewer/niivue/niivue.umd.js") in page


def test_a_page_shows_text_measures_and_the_masks_of_the_same_grid(folder, capsys):
    command = ["view", str(folder / "samples"), "--measures", str(folder / "m.csv"), "--out", str(folder / "v.html")]
    assert main(command) == 0
    (case,) = facts_of((folder / "v.html").read_text())
    assert (case["text"], case["masks"], case["measures"]) == (HOSTILE, ["lobes"], [["lungs", "3,000 ml"]])
    assert "airway.nii.gz: has 8 x 8 x 8 voxels, expected 24 x 24 x 24 as its volume" in capsys.readouterr().err


def test_a_page_names_no_address_of_a_network_and_lets_no_text_become_a_script(folder):
    write_page(folder / "v.html", find_cases([folder / "samples"]), title=HOSTILE)
    page = (folder / "v.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(
        r"https?://|//[a-z]+\.|src=x|href=", own.replace("&lt;img src=x", "").replace("\\u003cimg src=x", "")
    )
    assert page.count("<script>") == 3 and "<img" not in own
    assert "default-src 'none'" in page and "connect-src data: blob:;" in page


def test_the_voxels_of_a_page_are_those_of_the_file_where_they_were(tmp_path):
    volume = chest()
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(volume))
    again = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(again.array, volume.array)
    assert np.allclose(again.origin_mm, volume.origin_mm) and np.allclose(again.direction, volume.direction)
    assert np.allclose(again.spacing_mm, volume.spacing_mm)


def test_half_the_resolution_keeps_place_and_mean():
    half = reduced(chest(), 2)
    assert half.array.shape == (12, 12, 12) and half.spacing_mm == (4.0, 3.0, 2.0)
    assert half.origin_mm == (-9.5, 19.25, 6.0)  # the middle of the first 2 x 2 x 2 voxels, y runs to anterior
    assert half.array.mean() == chest().array.mean()


def test_a_page_above_its_limit_shows_less_resolution_or_is_refused(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(-1000, 1000, (64, 64, 64)).astype(np.int16)
    write_volume(tmp_path / "a.nii.gz", Volume(noise, (1.0, 1.0, 1.0)))
    command = ["view", str(tmp_path / "a.nii.gz"), "--out", str(tmp_path / "v.html"), "--max-mb"]
    assert main([*command, "2.5"]) == 0
    assert (tmp_path / "v.html").stat().st_size < 2.5e6
    assert "1/2 of the resolution" in capsys.readouterr().err
    (tmp_path / "v.html").unlink()
    assert main([*command, "2"]) == 2 and not (tmp_path / "v.html").exists()
    assert "would be larger than 2 MB" in capsys.readouterr().err


def test_what_cannot_be_shown_is_named_and_the_rest_is_shown(folder):
    (folder / "bad.nii.gz").write_bytes(b"not an image")
    cases = [Case("bad", folder / "bad.nii.gz"), *find_cases([folder / "samples"])]
    notes = write_page(folder / "v.html", cases, title="t")
    assert sum("bad.nii.gz" in note for note in notes) == 1
    assert [case["name"] for case in facts_of((folder / "v.html").read_text())] == ["one"]


def test_nothing_to_show_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["view", str(tmp_path / "empty"), "--out", str(tmp_path / "v.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["view", str(tmp_path / "nowhere"), "--out", str(tmp_path / "v.html")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_volumes_are_chosen_in_turn_from_every_group(tmp_path):
    cases = [Case(f"{group}{k}", tmp_path, group) for group in "ab" for k in range(3)]
    assert [case.name for case in choose(cases, 3)] == ["a0", "a1", "b0"]


def test_chromium_draws_the_volume_and_obeys_the_keyboard(folder):
    write_page(folder / "v.html", find_cases([folder / "samples"]), title="t")
    with chromium(640, 480) as browser:
        browser.get((folder / "v.html").as_uri())
        wait(browser, "return document.body.dataset.shown === '0'")
        right, left = mean_greys(browser)  # of the picture: the patient's right is on its left, soft tissue is white
        assert right > 200 and left < 100
        press(browser, "b")
        assert browser.execute_script("return medsynView.state().preset") == "bone"
        assert mean_greys(browser)[0] < right  # 40 HU is darker in the window of bone
        press(browser, "ArrowUp")
        press(browser, "v")
        assert browser.execute_script("return medsynView.state().main") == "coronal"
        assert browser.execute_script("return window.alerted") is None
        severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert severe == []


def wait(browser, script: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not browser.execute_script(script):
        assert time.monotonic() < end, f"{script}: not within {seconds} s"
        time.sleep(0.2)


def press(browser, key: str) -> None:
    browser.execute_script(
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))", key
    )


def mean_greys(browser) -> tuple[float, float]:
    """Return the mean grey of two patches of the main view, in its left and in its right half, without masks."""
    script = """
      medsynView.hidden.add('lobes'); medsynView.drawMasks(); medsynView.setCrosshair(false); medsynView.nv.drawScene();
      return document.getElementById('canvas').toDataURL('image/png').split(',')[1];
    """
    from io import BytesIO

    from PIL import Image

    picture = np.asarray(Image.open(BytesIO(base64.b64decode(browser.execute_script(script)))).convert("L"), float)
    height, width = picture.shape
    main_view = picture[height // 2 - 10 : height // 2 + 10, : width * 2 // 3]
    lit = np.flatnonzero(main_view.max(axis=0) > 5)
    assert len(lit) > 20, "the canvas is empty"
    middle = width // 3
    return float(main_view[:, middle - 30 : middle - 15].mean()), float(main_view[:, middle + 15 : middle + 30].mean())
