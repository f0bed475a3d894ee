"""The picture beside a generated volume: orientation, windows, letters."""

from __future__ import annotations

import numpy as np
import pytest

from medsyn.ct import preview
from medsyn.ct.preview import LETTER_COLOUR, two_windows
from medsyn.volume import Volume

HEIGHT = 80


@pytest.fixture
def picture(monkeypatch) -> np.ndarray:
    """Air, with soft tissue superior, anterior and left of the middle, and at all of the far right, posterior below."""
    monkeypatch.setattr(preview, "LEVELS", (0.5, 0.5, 0.3))
    array = np.full((8, 10, 12), -1000, np.int16)
    array[4:, 5:, 6:] = 40
    array[:4, :5, :6] = 40
    return two_windows(Volume(array, (2.0, 1.0, 1.0), (0.0, 0.0, 0.0)), HEIGHT)


def test_two_rows_of_three_views_with_square_pixels(picture):
    widths = HEIGHT * 12 // 10, HEIGHT * 12 // 16, HEIGHT * 10 // 16
    assert picture.shape == (2 * HEIGHT, sum(widths), 3) and picture.dtype == np.uint8


def test_the_patient_lies_as_a_radiologist_reads_him(picture):
    lungs = picture[:HEIGHT, :, 0].astype(float)
    axial, coronal, sagittal = lungs[:, :96], lungs[:, 96:156], lungs[:, 156:]
    quarter = HEIGHT // 4

    def corners(view: np.ndarray) -> tuple[bool, ...]:
        """Whether the upper left, upper right, lower left and lower right of a view are bright."""
        edge = view.shape[1] // 4
        return tuple(bool(view[row, column] > 100) for row in (quarter, -quarter) for column in (edge, -edge))

    assert corners(axial) == (False, True, False, False), "anterior above, the patient's left on the viewer's right"
    assert corners(coronal) == (False, True, False, False), "superior above"
    assert corners(sagittal) == (False, False, False, True), "anterior on the viewer's left"


def test_the_windows_are_those_of_lungs_and_of_soft_tissue(picture):
    bright = picture[10, 80, 0], picture[HEIGHT + 10, 80, 0]
    assert bright == (int((40 + 1150) / 1500 * 255), int((40 + 160) / 400 * 255))
    dark = picture[10, 10, 0], picture[HEIGHT + 10, 10, 0]
    assert dark == (int(150 / 1500 * 255), 0)


def test_a_view_that_is_too_narrow_for_a_letter_has_none():
    tall = Volume(np.full((200, 4, 4), 40, np.int16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    lungs = two_windows(tall, HEIGHT)[:HEIGHT]
    marked = (lungs == LETTER_COLOUR).all(axis=2)
    assert lungs.shape[1] == HEIGHT + 2 + 2
    assert marked[:, :HEIGHT].any() and not marked[:, HEIGHT:].any()


def test_letters_stand_at_the_sides(picture):
    marked = (picture[:HEIGHT] == LETTER_COLOUR).all(axis=2)
    rows, columns = np.nonzero(marked)
    assert rows.min() > HEIGHT // 2 - 8 and rows.max() < HEIGHT // 2 + 8
    groups = np.split(np.unique(columns), np.nonzero(np.diff(np.unique(columns)) > 10)[0] + 1)
    assert len(groups) == 6, "R and L, R and L, A and P"
