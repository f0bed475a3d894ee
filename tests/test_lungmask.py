"""lungmask's own networks with weights that tell HU apart: masks on oblique grids, and other files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tool_weights as tiny
from tool_weights import OBLIQUE, expected

from medsyn.config import MasksConfig
from medsyn.errors import InputError
from medsyn.files import sha256
from medsyn.masks.segment import open_tools, segment
from medsyn.masks.weights import weights_of
from medsyn.orientation import orientation_code
from medsyn.weight_files import hash_weights

LOBES_BY_HU = ((2, -900.0), (1, -850.0), (5, -790.0), (4, -650.0), (3, -375.0), (0, np.inf))


LUNGS_BY_HU = ((2, -850.0), (1, -100.0), (0, np.inf))


@pytest.fixture(scope="module")
def lungmask_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights folder with both of lungmask's models."""
    root = tmp_path_factory.mktemp("lungmask weights")
    tiny.write_lungmask(root / "lungmask/unet_ltrclobes-3a07043d.pth", 6, LOBES_BY_HU)
    tiny.write_lungmask(root / "lungmask/unet_r231-d5d2fc3d.pth", 3, LUNGS_BY_HU)
    return root


# --- lungmask ---


def test_lungmask_on_an_oblique_grid_with_turned_axes(lungmask_root: Path, no_network: list[str]) -> None:
    volume = tiny.plateau_chest((14.0, 1.4, 1.1), **OBLIQUE)
    masks = segment(volume, MasksConfig(lobes="lungmask", weights_dir=str(lungmask_root)))
    found, truth = masks.labels["lobes"], expected(volume, "lobes")
    truth[volume.array == tiny.DENSE_HU] = 5  # seen by R231 alone, given to the lobe around it
    inside = tiny.inside_plateaus(volume, (2.0, 0.0, 2.0))  # slices, the middle axis here, do not see each other
    assert orientation_code(volume) == "RSA"
    assert found.direction == volume.direction
    np.testing.assert_array_equal(found.array[inside], truth[inside])
    assert set(np.unique(truth[inside])) == set(range(6))
    assert (volume.array[inside] == tiny.DENSE_HU).sum() > 50
    record = masks.record["lobes"]
    assert (record["tool"], record["version"]) == ("lungmask", "0.2.22")
    files = sorted((lungmask_root / "lungmask").iterdir())
    assert record["weights_hash"] == hash_weights(files, lungmask_root)
    assert not no_network


@pytest.mark.parametrize("model", ["LTRCLobes", "R231"])
def test_lungmask_models_alone(lungmask_root: Path, model: str) -> None:
    volume = tiny.plateau_chest((25.0, 2.0, 2.0))
    config = MasksConfig(lobes="lungmask", lungmask_model=model, weights_dir=str(lungmask_root))
    masks = segment(volume, config)
    found, truth = masks.labels["lobes"].array, expected(volume, "lobes")
    inside = tiny.inside_plateaus(volume, (0.0, 2.5, 2.5))
    dense = volume.array == tiny.DENSE_HU
    assert (dense & inside).any()
    if model == "LTRCLobes":
        np.testing.assert_array_equal(found[inside], truth[inside])  # without the consolidation
    else:
        np.testing.assert_array_equal((found > 0)[inside], ((truth > 0) | dense)[inside])
        right = tiny.from_centre_mm(volume)[0] < 0
        assert np.isin(found[right & inside], (0, 3, 4, 5)).all()
        assert np.isin(found[~right & inside], (0, 1, 2)).all()
    [file] = [row.path for row in weights_of("lungmask", [model])]
    assert masks.record["lobes"]["weights_hash"] == sha256(lungmask_root / file)


def test_lungmask_files_that_are_something_else(lungmask_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lungmask"
    folder.mkdir()
    lobes = folder / "unet_ltrclobes-3a07043d.pth"
    lobes.symlink_to(lungmask_root / "lungmask/unet_r231-d5d2fc3d.pth")
    config = MasksConfig(lobes="lungmask", lungmask_model="LTRCLobes", weights_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"ltrclobes.*a model of 3 classes, expected 6"):
        open_tools(config)
    lobes.unlink()
    lobes.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="not lungmask's weights"):
        open_tools(config)
