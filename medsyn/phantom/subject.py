"""One phantom from its seed: `render_subject` gives the CT, the true masks and the truth about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from medsyn.phantom.fields import Body, shell
from medsyn.phantom.findings import FindingSpec
from medsyn.phantom.grid import Grid
from medsyn.phantom.pathology import place
from medsyn.phantom.plan import PLAN_GRID, Plan, make_plan
from medsyn.phantom.render import Layers, Rendering, calibrate_emphysema, render, tube_layers
from medsyn.phantom.sampling import sample_findings
from medsyn.volume import LOBE_NAMES, Volume, centred_origin_mm

MASK_NAMES = ("lobes", "airway", "vessels", "heart", "effusion")
_LABELS = dict(enumerate(LOBE_NAMES, start=1))


@dataclass(frozen=True)
class RenderedSubject:
    """volume: int16 HU (D, H, W) in model orientation; masks: by MASK_NAMES, uint8, same grid; truth: JSON-ready."""

    volume: Volume
    masks: dict[str, NDArray[np.uint8]]
    truth: dict


def subject_id(index: int) -> str:
    """Return the id: phantom-00000 and so on."""
    return f"phantom-{index:05d}"


def subject_findings(seed: int, index: int) -> tuple[FindingSpec, ...]:
    """Return the findings of subject `index` of the cohort with `seed`."""
    return sample_findings(np.random.default_rng(np.random.SeedSequence([seed, index]).spawn(1)[0]))


def render_subject(
    seed: int, index: int, size: int = 64, specs: Sequence[FindingSpec] | None = None
) -> RenderedSubject:
    """Render subject `index` of the cohort with `seed` on a size^3 grid over 292 x 316 x 316 mm (z, y, x).

    specs: findings instead of the sampled ones (the anatomy stays). The same arguments give the same bits; another
    size gives the same person. The volume's centre is the world's origin.
    """
    findings = tuple(specs) if specs is not None else subject_findings(seed, index)
    plan, grid, _, rendering = render_findings(seed, index, size, findings)
    origin = centred_origin_mm(grid.size, grid.spacing)
    volume = Volume(rendering.hu, grid.spacing, origin)
    truth = {
        "subject_id": subject_id(index),
        "seed": [seed, index],
        "size": size,
        "spacing_mm": list(grid.spacing),
        "findings": [asdict(spec) for spec in findings],
        "normal": not findings,
        **_measures(plan.body, rendering, grid),
    }
    return RenderedSubject(volume, rendering.masks, truth)


def render_findings(
    seed: int, index: int, size: int, findings: tuple[FindingSpec, ...]
) -> tuple[Plan, Grid, Layers, Rendering]:
    """Return plan, grid, tube layers and rendering of subject `index` with these findings on a size^3 grid."""
    plan = make_plan((seed, index), findings)
    lesions = place(plan.seed, findings, plan.lungs.shell, plan.lungs.lung, plan.labels, PLAN_GRID)
    grid = Grid((size, size, size))
    layers = tube_layers(plan, grid)
    for spec in findings:
        if spec.kind == "emphysema":
            calibrate_emphysema(plan, lesions, spec.amount, grid, layers)
    return plan, grid, layers, render(plan, lesions, grid, layers)


def _measures(body: Body, rendering: Rendering, grid: Grid) -> dict[str, object]:
    """Return the volumes of the masks and the three measures of Tables II to IV, on the rendered voxels."""
    masks = rendering.masks
    lobes = masks["lobes"]
    volumes = {name: round(float((lobes == label).sum()) * grid.voxel_ml, 3) for label, name in _LABELS.items()}
    volumes["lung"] = round(float((lobes > 0).sum()) * grid.voxel_ml, 3)
    for name in MASK_NAMES[1:]:
        volumes[name] = round(float(masks[name].sum()) * grid.voxel_ml, 3)
    lung = (lobes > 0) & (masks["airway"] == 0)
    return {
        "volumes_ml": volumes,
        "effusion_volume_ml": volumes["effusion"],
        "laa950_percent": round(100.0 * float((rendering.hu[lung] < -950).mean()), 4) if lung.any() else 0.0,
        "cardiothoracic_ratio": round(_cardiothoracic_ratio(body, masks["heart"], grid), 4),
    }


def _cardiothoracic_ratio(body: Body, heart: NDArray[np.uint8], grid: Grid) -> float:
    """Return the maximal width of the heart mask over the maximal inner width of the chest on the same axial slice."""
    columns = (heart > 0).max(axis=1)  # (D, W)
    extent = np.where(columns.any(1), grid.size[2] - columns.argmax(1) - columns[:, ::-1].argmax(1), 0)
    widest = int(extent.argmax())
    inside = shell(body, grid, slice(widest, widest + 1)).cavity < 0
    across = int(inside.any(axis=(0, 1)).sum())
    return float(extent[widest] / max(across, 1))
