"""A generated volume as one DICOM series: behind `medsyn export --dicom`.

Every slice is an instance of CT Image Storage (DICOM PS3.3, A.3) with stored values in HU (slope 1, intercept 0). The
series is marked as synthetic in SeriesDescription, in Image Type (DERIVED, SECONDARY: no direct result of an
examination, C.7.6.1.1.2), in Synthetic Data (0008,001C; C.12.1) and in Derivation Description. Study, series, frame of
reference and instances get new UIDs. The patient is named after the volume's file; no text of a prompt or report is
written.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from medsyn import __version__
from medsyn.ct.inspect import scale_faults
from medsyn.ct.reading import read_scan
from medsyn.errors import InputError
from medsyn.files import atomic_dir
from medsyn.names import CT_SUFFIXES, split_suffix
from medsyn.orientation import reorient
from medsyn.progress import log, track
from medsyn.volume import Volume

DESCRIPTION = "SYNTHETIC chest CT, not of a patient"
DICOM_CODE = "LPS"
"""How axial slices are stored: columns run to the patient's left, rows to the back, slices to the head."""
WINDOWS_HU = {"LUNG": (-600, 1500), "MEDIASTINUM": (40, 400)}
"""Centre and width."""
_LONGEST_LO = 64  # characters of a Long String (PS3.5, 6.2)


@dataclass(frozen=True)
class _Series:
    """What the slices of a series share."""

    name: str
    time: datetime
    study_uid: str
    series_uid: str
    frame_uid: str


def export_dicom(path: str | Path, out: str | Path) -> None:
    """Write the volume of a NIfTI (MetaImage, NRRD) file in HU as the DICOM series `out`/0001.dcm, ...

    Voxels keep their value, rounded, and their place in millimetres. A volume that is not in HU, or whose values do not
    fit 16 bits, and a folder `out` that is not empty are an InputError.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the file of a generated volume, such as volume.nii.gz")
    scan = read_scan(path)
    if scan.faults:
        raise InputError(f"{path}: {'; '.join(scan.faults)}")
    for warning in scan.warnings:
        log.warning("%s: warning, %s", path, warning)
    volume = reorient(scan.volume, DICOM_CODE)
    values = _int16(volume.array, path)
    series = _Series(_stem(path), datetime.now(UTC), *(str(generate_uid(prefix=None)) for _ in range(3)))
    width = max(4, len(str(len(values))))
    with atomic_dir(out) as folder:
        for k in track(range(len(values)), description="export", total=len(values)):
            dataset = _slice(volume, values, k, series)
            dataset.save_as(folder / f"{k + 1:0{width}d}.dcm", enforce_file_format=True)
    log.info("%s: %d slices, series %s", out, len(values), series.series_uid)


def _int16(array: NDArray, path: Path) -> NDArray[np.int16]:
    """Return HU (D, H, W) as whole numbers."""
    if faults := scale_faults(array):
        raise InputError(f"{path}: {'; '.join(faults)}; give a volume in HU")
    low, high = float(array.min()), float(array.max())
    limits = np.iinfo(np.int16)
    if low < limits.min or high > limits.max:
        raise InputError(
            f"{path}: values from {low:g} to {high:g} do not fit a CT of 16 bits, expected {limits.min} to"
            f" {limits.max}; clip them"
        )
    return np.rint(array).astype(np.int16)


def _slice(volume: Volume, values: NDArray[np.int16], k: int, series: _Series) -> FileDataset:
    """Return slice `k` of a volume in DICOM_CODE as an instance of CT Image Storage."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _add_patient_and_study(dataset, series)
    _add_series(dataset, series)
    _add_plane(dataset, volume, k)
    _add_pixels(dataset, values[k])
    dataset.InstanceNumber = k + 1
    return dataset


def _add_patient_and_study(dataset: Dataset, series: _Series) -> None:
    """Patient and General Study modules (PS3.3, C.7.1.1 and C.7.2.1): a patient who does not exist."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = f"Synthetic^{_plain(series.name)}"[:_LONGEST_LO]
    dataset.PatientID = f"SYNTHETIC-{_plain(series.name)}"[:_LONGEST_LO]
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID = series.study_uid
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = series.time.strftime("%Y%m%d")
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = series.time.strftime("%H%M%S")
    dataset.TimezoneOffsetFromUTC = "+0000"
    dataset.StudyDescription = DESCRIPTION
    dataset.StudyID = "1"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""


def _add_series(dataset: Dataset, series: _Series) -> None:
    """General Series, Equipment and SOP Common modules, and how the image was derived (C.7.6.1)."""
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = series.series_uid
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = DESCRIPTION
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.Manufacturer = dataset.ManufacturerModelName = "medsyn"
    dataset.SoftwareVersions = __version__
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.DerivationDescription = f"Synthetic: generated by a network (medsyn {__version__}), not acquired"
    dataset.BurnedInAnnotation = "NO"
    dataset.FrameOfReferenceUID = series.frame_uid
    dataset.PositionReferenceIndicator = ""
    dataset.AcquisitionNumber = dataset.KVP = None


def _add_plane(dataset: Dataset, volume: Volume, k: int) -> None:
    """Image Plane module (C.7.6.2): where slice `k` lies."""
    axes = np.array(volume.direction).reshape(3, 3)
    sz, sy, sx = volume.spacing_mm
    dataset.ImageOrientationPatient = _decimals([*axes[:, 0], *axes[:, 1]])
    dataset.ImagePositionPatient = _decimals(np.asarray(volume.origin_mm) + k * sz * axes[:, 2])
    dataset.PixelSpacing = _decimals([sy, sx])
    dataset.SliceThickness, dataset.SpacingBetweenSlices = _decimals([sz, sz])


def _add_pixels(dataset: Dataset, values: NDArray[np.int16]) -> None:
    """Image Pixel and CT Image modules (C.7.6.3 and C.8.2.1): HU as they are."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
    dataset.WindowCenter = [str(centre) for centre, _ in WINDOWS_HU.values()]
    dataset.WindowWidth = [str(width) for _, width in WINDOWS_HU.values()]
    dataset.WindowCenterWidthExplanation = list(WINDOWS_HU)
    dataset.PixelData = values.astype("<i2").tobytes()


def _decimals(numbers: Any) -> list[DSfloat]:
    """Return numbers as Decimal Strings, rounded to the 16 characters that these may have."""
    return [DSfloat(float(number), auto_format=True) for number in numbers]


def _plain(name: str) -> str:
    """Return a name without the characters that separate parts of a DICOM value, and without control characters."""
    return "".join("_" if letter in "\\^=" or not letter.isprintable() else letter for letter in name)


def _stem(path: Path) -> str:
    """Return the name of a volume: of its file, or of its folder where the file is volume.nii.gz."""
    stem, _ = split_suffix(path.name, CT_SUFFIXES)
    return path.resolve().parent.name if stem == "volume" else stem
