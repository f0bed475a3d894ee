"""The picture of docs/real_ct.md that shows a scan registered to the atlas.

    python benchmarks/atlas_figure.py --ct chest_real_5mm.nii.gz --out docs/images/real_ct_atlas.png

The scan at the settings of config/paper.yaml, three views as in every preview; painted on it the outlines of the
atlas's lungs (green) and of the scan's own, found before registration and moved with it (pink).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from medsyn.config import load_config
from medsyn.ct.atlas import load_atlas
from medsyn.ct.inspect import judge
from medsyn.ct.preprocess import preprocess
from medsyn.ct.preview import middle_of, three_views, write_png
from medsyn.ct.reading import read_ct
from medsyn.volume import Volume, from_sitk, to_sitk

ROOT = Path(__file__).resolve().parents[1]
GREEN, PINK = 6, 7
"""Labels of `medsyn.ct.preview.PALETTE`."""


def main() -> None:
    """Preprocess, outline, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = load_config(ROOT / "config/paper.yaml").preprocess
    source = read_ct(args.ct)
    chest = judge(source)[1]
    result = preprocess(source, config, name=str(args.ct))
    assert chest is not None  # else preprocess has refused the scan
    lungs = chest.volume.with_array(chest.lungs.mask)
    atlas = on_grid(load_atlas(config.atlas), sitk.Transform(3, sitk.sitkIdentity), result.volume)
    moved = on_grid(lungs, result.transform, result.volume)
    z, y, x = middle_of(moved)
    outlines = np.zeros(config.size, np.uint8)
    for colour, mask in ((GREEN, atlas), (PINK, moved)):
        for plane in (np.s_[z], np.s_[:, y], np.s_[:, :, x]):
            outlines[plane][mask[plane] & ~ndimage.binary_erosion(mask[plane])] = colour
    write_png(args.out, three_views(result.volume, outlines, height=384, at=(z, y, x)))
    print({name: result.qc[name] for name in ("alignment_used", "atlas_dice_centred", "atlas_dice", "volume_scale")})


def on_grid(mask: Volume, transform: sitk.Transform, grid: Volume) -> NDArray[np.bool_]:
    """A mask brought to the grid of `grid`, smoothly: its own voxels may be larger."""
    share = to_sitk(mask.with_array(mask.array.astype(np.float32)))
    return np.asarray(from_sitk(sitk.Resample(share, to_sitk(grid), transform, sitk.sitkLinear, 0.0)).array >= 0.5)


if __name__ == "__main__":
    main()
