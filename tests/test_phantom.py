"""The embedded cohort: one person at every size, findings that are as large as they claim, masks that fit the image."""

import csv
import json

import numpy as np
import pytest

from medsyn.cli import main
from medsyn.phantom.anatomy import draw_anatomy, heart_ellipsoids
from medsyn.phantom.findings import UNITS, FindingSpec
from medsyn.phantom.grid import FIELD_OF_VIEW_MM, Grid, Noise
from medsyn.phantom.plan import PLAN_GRID, lungs_on, make_plan
from medsyn.phantom.sampling import AMOUNT, sample_findings
from medsyn.phantom.subject import MASK_NAMES, render_subject, subject_findings
from medsyn.phantom.tree import grow, relative_radius
from medsyn.phantom.tubes import Tubes, coverage
from medsyn.volume import MODEL_DIRECTION, read_volume


@pytest.fixture(scope="module")
def normal():
    return render_subject(3, 0, 64, ())


def test_same_seed_same_bits_other_seed_other_person(normal):
    again = render_subject(3, 0, 64, ())
    assert np.array_equal(again.volume.array, normal.volume.array)
    assert all(np.array_equal(again.masks[name], normal.masks[name]) for name in MASK_NAMES)
    assert again.truth == normal.truth
    other = render_subject(3, 1, 64, ())
    assert other.truth["volumes_ml"] != normal.truth["volumes_ml"]


def test_two_sizes_show_the_same_person(normal):
    fine = render_subject(3, 0, 96, ())
    for name in ("lung", "left_upper", "right_middle", "right_lower", "heart"):
        coarse_ml, fine_ml = normal.truth["volumes_ml"][name], fine.truth["volumes_ml"][name]
        assert fine_ml == pytest.approx(coarse_ml, rel=0.03), name
    assert fine.truth["cardiothoracic_ratio"] == pytest.approx(normal.truth["cardiothoracic_ratio"], abs=0.02)


def test_normal_subjects_lie_in_published_ranges():
    truths = [render_subject(11, index, 64, ()).truth for index in range(6)]
    for truth in truths:
        volumes = truth["volumes_ml"]
        right = volumes["right_upper"] + volumes["right_middle"] + volumes["right_lower"]
        assert 2800 < volumes["lung"] < 7500
        assert right > volumes["left_upper"] + volumes["left_lower"]
        assert truth["laa950_percent"] < 3.0
        assert 0.39 <= truth["cardiothoracic_ratio"] <= 0.50
        assert truth["effusion_volume_ml"] == 0 and truth["normal"]
        assert 20 < volumes["airway"] < 140
        assert min(volumes[name] for name in ("left_upper", "left_lower", "right_upper", "right_lower")) > 350


def test_tissues_have_the_hounsfield_units_of_a_ct(normal):
    hu, masks = normal.volume.array, normal.masks
    assert hu.dtype == np.int16 and hu.min() >= -1024
    assert -900 < np.median(hu[masks["lobes"] > 0]) < -800
    assert 25 < np.median(hu[masks["heart"] > 0]) < 200
    assert np.median(hu[masks["airway"] > 0]) < -850
    assert (hu > 300).sum() > 0.005 * hu.size  # a skeleton
    assert np.median(hu[32, -1]) < -980  # air in front of the chest
    back, front = np.arange(64) < 26, np.arange(64) > 38
    lobes = masks["lobes"] > 0
    assert np.median(hu[:, back][lobes[:, back]]) > np.median(hu[:, front][lobes[:, front]]) + 10  # gravity


def test_masks_lie_where_they_should(normal):
    lobes, airway = normal.masks["lobes"], normal.masks["airway"]
    x = np.arange(64)
    centre = [np.average(x, weights=(lobes == label).sum((0, 1))) for label in range(1, 6)]
    assert min(centre[:2]) > 32 > max(centre[2:])  # left lobes at high x
    height = [np.average(x, weights=(lobes == label).sum((1, 2))) for label in range(1, 6)]
    assert height[0] > height[1] and height[2] > height[3] > height[4]
    assert airway[-1].any() and not (airway & (normal.masks["heart"])).any()
    assert not ((normal.masks["effusion"] > 0) & (lobes > 0)).any()
    assert (lobes[normal.masks["vessels"] > 0] > 0).all()
    assert normal.volume.direction == MODEL_DIRECTION
    extent = np.array(normal.volume.array.shape) * np.array(normal.volume.spacing_mm)
    assert extent == pytest.approx(FIELD_OF_VIEW_MM)


@pytest.mark.parametrize("side, ml", [("left", 300.0), ("right", 1200.0)])
def test_effusion_has_its_volume_lies_behind_and_replaces_lung(normal, side, ml):
    subject = render_subject(3, 0, 64, (FindingSpec("pleural_effusion", 0.5, ml, side),))
    assert subject.truth["effusion_volume_ml"] == pytest.approx(ml, rel=0.15)
    fluid = subject.masks["effusion"] > 0
    x = np.nonzero(fluid)[2]
    assert ((x > 31.5) == (side == "left")).mean() > 0.97
    y_fluid = np.nonzero(fluid)[1].mean()
    y_lung = np.nonzero((normal.masks["lobes"] > 0) & ((np.arange(64) > 31.5) == (side == "left")))[1].mean()
    assert y_fluid < y_lung - 2
    assert -15 < np.median(subject.volume.array[fluid]) < 40
    lost = normal.truth["volumes_ml"]["lung"] - subject.truth["volumes_ml"]["lung"]
    assert lost == pytest.approx(subject.truth["effusion_volume_ml"], rel=0.01)


@pytest.mark.parametrize("percent", [8.0, 25.0, 34.0])
def test_emphysema_reaches_its_share(percent):
    subject = render_subject(3, 2, 64, (FindingSpec("emphysema", 0.5, percent),))
    assert subject.truth["laa950_percent"] == pytest.approx(percent, rel=0.15)


def test_cardiomegaly_reaches_its_ratio():
    for ratio in (0.54, 0.66):
        subject = render_subject(3, 0, 64, (FindingSpec("cardiomegaly", 0.5, ratio),))
        assert subject.truth["cardiothoracic_ratio"] == pytest.approx(ratio, abs=0.03)


def test_opacities_fill_their_lobe(normal):
    specs = (
        FindingSpec("consolidation", 0.5, 200.0, "right", "right_lower"),
        FindingSpec("ground_glass_opacity", 0.5, 250.0, "left", "left_upper"),
        FindingSpec("nodule", 0.9, 28.0, "right", "right_upper"),
    )
    subject = render_subject(3, 0, 64, specs)
    change = subject.volume.array.astype(float) - normal.volume.array
    voxel_ml = float(np.prod(subject.volume.spacing_mm)) / 1000
    lobes = subject.masks["lobes"]
    assert (change[lobes == 5] > 400).sum() * voxel_ml == pytest.approx(200, rel=0.3)
    assert (change[lobes == 1] > 130).sum() * voxel_ml == pytest.approx(250, rel=0.35)
    assert (change[lobes == 3] > 400).sum() * voxel_ml == pytest.approx(4 / 3 * np.pi * 1.4**3, rel=0.5)
    assert np.abs(change[lobes == 2]).max() < 300


def test_any_combination_renders():
    specs = (
        FindingSpec("pleural_effusion", 1.0, 1500.0, "left"),
        FindingSpec("pleural_effusion", 1.0, 1500.0, "right"),
        FindingSpec("emphysema", 1.0, 35.0),
        FindingSpec("cardiomegaly", 1.0, 0.68),
        FindingSpec("consolidation", 1.0, 450.0, "left", "left_lower"),
    )
    truth = render_subject(3, 5, 64, specs).truth
    assert truth["effusion_volume_ml"] > 2000 and truth["laa950_percent"] > 2 and not truth["normal"]


def test_prevalences_are_as_documented():
    draws = [sample_findings(np.random.default_rng(seed)) for seed in range(3000)]
    share = {kind: np.mean([any(s.kind == kind for s in specs) for specs in draws]) for kind in UNITS}
    assert np.mean([not specs for specs in draws]) == pytest.approx(0.27, abs=0.03)
    for kind in ("pleural_effusion", "emphysema", "cardiomegaly"):
        assert share[kind] == pytest.approx(0.35, abs=0.04), kind
    for specs in draws:
        for spec in specs:
            low, high = AMOUNT[spec.kind]
            assert 0 < spec.severity <= 1 and low <= spec.amount <= high
            assert bool(spec.lobe) == (spec.kind in ("consolidation", "ground_glass_opacity", "nodule"))


def test_heart_and_chest_follow_the_drawn_anatomy():
    anatomy = draw_anatomy(np.random.default_rng(0))
    widths = [max(p.centre[2] + p.semi.max() for p in heart_ellipsoids(anatomy, ratio)) for ratio in (0.42, 0.5, 0.6)]
    assert widths == sorted(widths) and 0.7 < anatomy.half_width / 130 < 1.3


def test_airways_branch_to_the_sixth_generation_and_narrow():
    plan = make_plan((3, 0), ())
    for label, tree in plan.airways.lobes.items():
        radius = plan.airways.radius[label]
        assert tree.generation[radius >= 0.7].max() + 2 >= 6  # lobar bronchi are the second generation
        child = tree.parent >= 0
        assert (radius[child] <= radius[tree.parent[child]] + 1e-9).all()


def test_growth_fills_the_points_it_is_given():
    rng = np.random.default_rng(0)
    points = rng.uniform(-30, 30, (600, 3))
    (tree,) = grow([points], [np.array([40.0, 0, 0])], [np.array([-1.0, 0, 0])], smallest=4)
    nearest = np.min(np.linalg.norm(points[:, None] - tree.end[None], axis=2), axis=1)
    assert nearest.mean() < 6 and (tree.parent < np.arange(len(tree))).all()
    assert tree.flow[tree.parent < 0].sum() == 600
    assert relative_radius(1.0) == 1.0 and relative_radius(0.01) < relative_radius(0.1) < 0.5


def test_trees_that_grow_together_are_those_that_grow_alone():
    rng = np.random.default_rng(1)
    clouds = [rng.uniform(-30, 30, (count, 3)) for count in (400, 90, 250)]
    starts, directions = [rng.uniform(30, 50, 3) for _ in clouds], [rng.uniform(-1, 0, 3) for _ in clouds]
    together = grow(clouds, starts, directions, smallest=4)
    for tree, cloud, start, direction in zip(together, clouds, starts, directions, strict=True):
        (alone,) = grow([cloud], [start], [direction], smallest=4)
        for name in ("start", "end", "parent", "flow", "generation"):
            assert np.array_equal(getattr(tree, name), getattr(alone, name)), name


def test_a_render_on_the_grid_of_the_plan_takes_over_what_another_slab_computes():
    plan = make_plan((3, 0), ())
    around = np.full(PLAN_GRID.size, 99.0, np.float32)
    whole, upper = lungs_on(plan, PLAN_GRID, slice(None), around), lungs_on(plan, PLAN_GRID, slice(20, 64), around)
    assert whole.shell is plan.chest.shell and np.array_equal(whole.lung[20:], upper.lung)
    for kept, computed in zip((whole.heart, *whole.fissures), (upper.heart, *upper.fissures), strict=True):
        assert np.array_equal(kept[20:], computed)


def test_tube_coverage_sees_every_voxel_within_reach():
    grid = Grid((24, 24, 24))
    tubes = Tubes.path([np.array([-70.0, 20.0, -150.0]), np.array([30.0, -40.0, 60.0]), np.zeros(3)], [14.0, 9.0, 2.0])
    z, y, x = np.meshgrid(*grid.axes, indexing="ij")
    best = np.zeros(grid.size)
    for a, b, ra, rb in zip(tubes.start, tubes.end, tubes.start_radius, tubes.end_radius, strict=True):
        points, span = np.stack([z, y, x], -1) - a, b - a
        along = np.clip(points @ span / (span @ span), 0, 1)
        radius, half = ra + along * (rb - ra), grid.width / 2
        away = np.linalg.norm(points - along[..., None] * span, axis=-1) - np.maximum(radius, half)
        share = np.clip(0.5 - away / grid.width, 0, 1) * np.minimum(radius / half, 1) ** 2
        best = np.maximum(best, share)
    assert np.abs(coverage(grid, tubes) - 255 * best).max() <= 1 and best.max() == 1


def test_tube_coverage_keeps_volume_at_every_size():
    tube = Tubes.path([np.array([-60.0, 3.3, 1.7]), np.array([60.0, -4.1, 8.2])], [6.0, 6.0])
    length = float(np.linalg.norm(tube.end - tube.start))
    for size in (64, 128):
        grid = Grid((size, size, size))
        ml = coverage(grid, tube).sum() / 255 * grid.voxel_ml
        assert ml == pytest.approx((np.pi * 36 * length + 4 / 3 * np.pi * 216) / 1000, rel=0.1)


def test_noise_is_the_same_field_on_every_grid():
    noise = Noise(np.random.default_rng(0), 12.0)
    coarse, fine = Grid((32, 32, 32)), Grid((96, 96, 96))
    a = noise.sample(coarse, slice(None))
    b = noise.sample(fine, slice(None))[1::3, 1::3, 1::3]
    assert np.allclose(a, b, atol=1e-4) and 0.8 < b.std() < 1.2


def test_verb_writes_a_cohort_and_shards_agree(tmp_path):
    assert main(["phantom", "--out", str(tmp_path / "all"), "--count", "2", "--size", "24", "--seed", "4"]) == 0
    shard = ["phantom", "--out", str(tmp_path / "one"), "--count", "2", "--size", "24", "--seed", "4", "--shard", "1/2"]
    assert main(shard) == 0
    with (tmp_path / "all" / "cohort.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["subject_id"] for row in rows] == ["phantom-00000", "phantom-00001"]
    for index, row in enumerate(rows):
        assert row["findings"] and row["impression"]
        assert row["labels"] == ";".join(dict.fromkeys(spec.kind for spec in subject_findings(4, index)))
        truth = json.loads((tmp_path / "all" / row["truth"]).read_text(encoding="utf-8"))
        assert truth["subject_id"] == row["subject_id"] and truth["size"] == 24
        assert read_volume(tmp_path / "all" / row["image"]).array.shape == (24, 24, 24)
    for path in sorted((tmp_path / "one" / "phantom-00001").iterdir()):
        assert path.read_bytes() == (tmp_path / "all" / "phantom-00001" / path.name).read_bytes(), path.name


def test_text_only_reports_and_bad_arguments(tmp_path, capsys):
    out = tmp_path / "text.csv"
    assert main(["phantom", "--reports-only", "--count", "5", "--out", str(out)]) == 0
    with out.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["report_id"] for row in rows] == [f"text-{i:05d}" for i in range(5)] and all(
        r["findings"] for r in rows
    )
    assert main(["phantom", "--out", str(tmp_path / "p")]) == 2
    assert "give --count N" in capsys.readouterr().err
    assert main(["phantom", "--out", str(tmp_path / "p"), "--count", "2", "--shard", "2/2"]) == 2
    assert "0 <= K < N" in capsys.readouterr().err
    for option in ("--size", "--shard"):
        assert main(["phantom", "--reports-only", "--count", "5", "--out", str(out), option, "64"]) == 2
        assert f"{option} goes with volumes, not with --reports-only" in capsys.readouterr().err
