"""What holds for every input: properties, checked on fixed random examples (hypothesis)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from medsyn.cohort.manifest import split_patients
from medsyn.errors import InputError
from medsyn.masks.labels import dice, mean_label_dice
from medsyn.models.unet import from_patches, to_patches
from medsyn.names import parse_shard
from medsyn.orientation import orientation_code, reorient
from medsyn.phantom.cohort import shard_indices
from medsyn.volume import Volume, read_volume, write_volume

properties = settings(
    max_examples=30, derandomize=True, database=None, deadline=None, phases=[Phase.generate, Phase.shrink]
)
CODES = [
    "".join(letters) for pairs in itertools.permutations(("LR", "AP", "SI")) for letters in itertools.product(*pairs)
]
SPACING = st.floats(0.25, 8.0)
SHAPE = st.tuples(*[st.integers(2, 5)] * 3)
MASKS = arrays.arrays(bool, SHAPE)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """A small oblique volume in any of the 48 orientations, with a different number in every voxel."""
    shape = draw(SHAPE)
    turns = np.random.default_rng(draw(st.integers(0, 99))).uniform(-0.1, 0.1, (3, 3))
    turn = np.linalg.qr(np.eye(3) + turns)[0]
    turn *= np.sign(np.diag(turn))
    direction = tuple(float(cosine) for cosine in turn.ravel())
    origin = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return reorient(
        Volume(array, draw(st.tuples(SPACING, SPACING, SPACING)), origin, direction), draw(st.sampled_from(CODES))
    )


def points_mm(volume: Volume) -> NDArray:
    """Return the LPS millimetres (n, 3) of the voxels, in the order of their values."""
    index = np.indices(volume.array.shape).reshape(3, -1)[::-1] * np.array(volume.spacing_mm[::-1])[:, None]
    points = np.array(volume.direction).reshape(3, 3) @ index + np.array(volume.origin_mm)[:, None]
    return points.T[np.argsort(volume.array, axis=None)]


@properties
@given(volumes(), st.sampled_from(CODES))
def test_reorienting_moves_no_voxel_in_the_patient(volume, code):
    turned = reorient(volume, code)
    assert orientation_code(turned) == code
    np.testing.assert_allclose(points_mm(turned), points_mm(volume), atol=1e-6)
    back = reorient(turned, orientation_code(volume))
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.origin_mm, volume.origin_mm, atol=1e-6)


@properties
@given(volumes(), st.sampled_from([".nii.gz", ".nii", ".mha", ".nrrd"]))
def test_a_written_volume_is_read_where_it_was(tmp_path_factory, volume, suffix):
    path = tmp_path_factory.mktemp("round trip") / f"volume{suffix}"
    write_volume(path, volume)
    read = read_volume(path)
    np.testing.assert_array_equal(read.array, volume.array)
    np.testing.assert_allclose(points_mm(read), points_mm(volume), atol=2e-3)  # NIfTI keeps 32 bits


@properties
@given(st.sampled_from([1, 2, 4]), st.tuples(*[st.integers(1, 3)] * 5))
def test_patches_are_the_voxels_in_another_order(size, shape):
    batch, channels, *grid = shape
    x = torch.arange(batch * channels * np.prod(grid) * size**3, dtype=torch.float64)
    x = x.reshape(batch, channels, *(size * side for side in grid))
    patches = to_patches(x, size)
    assert patches.shape == (batch, channels * size**3, *grid)
    assert torch.equal(patches[:, :, 0, 0, 0], x[:, :, :size, :size, :size].reshape(batch, -1))
    assert torch.equal(from_patches(patches, size), x)


PATIENTS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=40)
FRACTION = st.floats(0, 1)


@properties
@given(
    PATIENTS,
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.sampled_from(["train", "validation"])),
    FRACTION,
    st.integers(0, 9),
)
def test_every_patient_is_in_one_split_and_the_given_ones_stay(patients, given_splits, fraction, seed):
    splits = split_patients(patients, given_splits, fraction, seed)
    assert splits.keys() == set(patients)
    assert set(splits.values()) <= {"train", "validation"}
    assert all(splits[name] == given_splits[name] for name in given_splits.keys() & splits.keys())
    assert split_patients(patients[::-1], given_splits, fraction, seed) == splits, "the order of the rows is irrelevant"
    free = [name for name in splits if name not in given_splits]
    held_out = sum(splits[name] == "validation" for name in free)
    assert abs(held_out - fraction * len(free)) <= 0.5 or held_out == 1


@properties
@given(PATIENTS, st.text("xyz", min_size=1, max_size=3), st.integers(0, 9))
def test_a_patient_that_is_added_moves_at_most_one_other(patients, added, seed):
    before, after = (split_patients(names, {}, 0.3, seed) for names in (patients, [*patients, added]))
    assert sum(before[name] != after[name] for name in before) <= 1


@properties
@given(MASKS, st.data())
def test_dice_lies_between_0_and_1_and_is_1_for_equal_masks(first, data):
    second = data.draw(arrays.arrays(bool, first.shape))
    score = dice(first, second)
    assert score == dice(second, first)
    assert (score is None) == (not first.any() and not second.any())
    if score is not None:
        assert 0 <= score <= 1
        assert (score == 1) == np.array_equal(first, second)
        assert (score == 0) == (not (first & second).any())
    labels = first + 2 * (second & ~first)
    assert mean_label_dice(labels, labels, (1, 2)) in (None, 1.0)


@properties
@given(st.integers(0, 200), st.integers(1, 12))
def test_shards_part_the_cohort(count, num_shards):
    parts = [list(shard_indices(count, parse_shard(f"{k}/{num_shards}"))) for k in range(num_shards)]
    assert sorted(index for part in parts for index in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@properties
@given(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from(["{}/{}", "{}", "{}/", "/{}", "{}/{}/1", "{}-{}"]))
def test_a_shard_that_cannot_be_is_refused(index, number, form):
    text = form.format(index, number)
    if form == "{}/{}" and 0 <= index < number:
        assert parse_shard(text) == (index, number)
    else:
        with pytest.raises(InputError, match="expected K/N"):
            parse_shard(text)
