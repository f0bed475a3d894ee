"""The package's own mask tools as data. Their code is imported when they are opened."""

from __future__ import annotations

from medsyn.masks.tools import MaskTool, imported

CLASSICAL = MaskTool(
    open=imported("medsyn.masks.classical:Classical"),
    structures=("lobes", "airway", "vessels"),
    may_find_nothing=True,
    measures_itself=True,
)
LUNGMASK = MaskTool(
    open=imported("medsyn.masks.lungmask_tool:Lungmask"),
    structures=("lobes",),
    uses_network=True,
    packages=("lungmask",),
    weight_parts=lambda config, structures: config.lungmask_model.split("_"),
)
TOTALSEGMENTATOR = MaskTool(
    open=imported("medsyn.masks.totalsegmentator_tool:TotalSegmentator"),
    structures=("lobes", "airway", "vessels", "heart", "effusion"),
    uses_network=True,
    packages=("totalsegmentator", "nnunetv2"),
)
NAVIAIRWAY = MaskTool(
    open=imported("medsyn.masks.naviairway_tool:NaviAirwayTool"),
    structures=("airway",),
    uses_network=True,
)
