"""Which kernels count as sharp, by the names that the vendors write into ConvolutionKernel."""

import pytest

from medsyn.kernels import is_sharp

SHARP = {
    "Siemens": "B60s B60f B70s B70f B80f B90s I70f Br60f Br64d Br69 Bl57d Bl64f Hr60 Hr68h Ur77 Ur73u U90u S80s Qr69",
    "GE": "LUNG BONE BONEPLUS EDGE ULTRA",
    "Canon": "FC30 FC31 FC35 FC50 FC51 FC52 FC53 FC56 FC80 FC81 FC86",
    "Philips": "L D E EB EC YA YB YC YD",
    "in words": "Sharp B_SHARP_C LungSharp",
}
SOFT = {
    "Siemens": "B10f B20s B30f B31s B40s B45f I30f I41s Br36 Br40f Br44d Bf37 Bv40 Hr40 Hv36 Qr40 Qr36d Ur40 T20f J30s",
    "GE": "SOFT STANDARD STND DETAIL CHEST",
    "Canon": "FC01 FC02 FC03 FC07 FC08 FC10 FC12 FC13 FC17 FC18 FC20 FC26",
    "Philips": "A B C UA UB",
}


@pytest.mark.parametrize("vendor", SHARP)
def test_sharp_kernels(vendor: str) -> None:
    assert not [name for name in SHARP[vendor].split() if not is_sharp(name)]


@pytest.mark.parametrize("vendor", SOFT)
def test_soft_kernels(vendor: str) -> None:
    assert not [name for name in SOFT[vendor].split() if is_sharp(name)]


def test_blanks_around_a_name_say_nothing() -> None:
    assert is_sharp(" L ")
    assert not is_sharp("")
