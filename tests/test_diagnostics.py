"""Diagnostics: errors of known predictors, super-resolution of known volumes, areas of known scores, verb, figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import make_run, stage
from torch import Tensor, nn

from medsyn.cli import main
from medsyn.config import DiagnosticsStage, EvaluationConfig, PromptPairConfig
from medsyn.diffusion.objective import LowResolution
from medsyn.diffusion.schedule import alpha_bar
from medsyn.errors import InputError
from medsyn.evaluate.diagnosis import COLUMNS, denoising_rows, prompt_rows, read_diagnosis, super_resolution_rows
from medsyn.evaluate.statistics import area_under_roc, area_under_roc_interval, ratio_of_means
from medsyn.exhibits.diagnostic_panels import diagnostic_panels
from medsyn.exhibits.diagnostics import labels_of_reports
from medsyn.files import read_csv, read_json, write_csv, write_json
from medsyn.methods import diagnose
from medsyn.methods.diagnose import TIMES, ExaminedNetwork, super_resolution
from medsyn.methods.run import Run, open_run, sampling_with
from medsyn.models.channels import CHANNELS
from medsyn.models.weights import build
from medsyn.training.data import Embeddings, Store, TrainingData

PAIRS = {
    "pleural_effusion": PromptPairConfig(measure="effusion_volume_ml", with_finding="a", without_finding="b"),
    "cardiomegaly": PromptPairConfig(measure="cardiothoracic_ratio", with_finding="a", without_finding="b"),
}
CONFIG = EvaluationConfig(prompt_pairs=PAIRS, num_fid_samples=4, num_bootstrap=200)


class Known(nn.Module):
    """A network that computes what it is told to from its noisy input, its time and what it is given."""

    def __init__(self, predict) -> None:
        super().__init__()
        self.predict = predict
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tau: Tensor, **given: Tensor) -> Tensor:
        return self.predict(x, tau, **given)


@pytest.fixture
def shards(training_data) -> list[Path]:
    return [training_data / "store/0", training_data / "store/1"]


@pytest.fixture
def texts(training_data) -> Embeddings:
    return Embeddings(training_data / "embeddings.json", stage().sections)


def errors(network: nn.Module, shards: list[Path], texts: Embeddings | None, name: str = "low_res", **config) -> dict:
    """Return (subject, source, t, channel) -> error."""
    tested = ExaminedNetwork(network, stage(name), shards, texts, DiagnosticsStage(**config))
    return {(row["subject_id"], row["source"], row["t"], row["quantity"]): row["value"] for row in tested.errors()}


def same(found: dict, first: str, second: str, tolerance: float = 0.0) -> bool:
    """Whether two sources have the same errors; a comparison of nothing is an error."""
    one, other = ({(s, *rest): v for (s, k, *rest), v in found.items() if k == source} for source in (first, second))
    assert one.keys() == other.keys()
    assert one
    return all(abs(value - other[key]) <= tolerance * value for key, value in one.items())


# --- errors by noise level ---


def test_a_network_that_returns_the_mean_volume_has_its_error(shards, texts):
    mean = TrainingData(stage(), Store(shards, "low"), None).mean
    found = errors(Known(lambda x, tau, **given: mean.expand_as(x)), shards, texts)
    assert len(found) == 2 * 5 * 4 * 6  # subjects, times, channels, sources: three texts and three without a network
    assert same(found, "network", "mean_volume")
    assert not same(found, "network", "noisy_input")
    validation = TrainingData(stage(), Store(shards, "low", "validation"), None).clean(0)
    by_hand = (validation - mean).square().mean(dim=(1, 2, 3)).tolist()
    assert [found["s4", "mean_volume", 0.5, channel] for channel in CHANNELS] == pytest.approx(by_hand)


def test_an_untrained_network_with_components_is_the_linear_estimate(shards, texts):
    settings = stage(unet={"mean_volume": True, "num_components": 4})  # two less than there are training volumes
    data = TrainingData(settings, Store(shards, "low"), texts)
    network = build(settings, texts.hidden_size)
    network.set_statistics(data.mean, components=data.components)
    tested = ExaminedNetwork(network, settings, shards, texts, DiagnosticsStage())
    found = {(r["subject_id"], r["source"], r["t"], r["quantity"]): r["value"] for r in tested.errors()}
    assert same(found, "network", "linear_estimate", 1e-3)
    assert not same(found, "linear_estimate", "mean_volume", 1e-3)


def test_the_mean_is_that_of_the_training_volumes_alone(shards):
    data = TrainingData(stage(), Store(shards, "low"), None)
    assert torch.allclose(data.mean, torch.stack([data.clean(i) for i in range(6)]).mean(0), atol=1e-6)
    validation = Store(shards, "low", "validation")
    assert validation.subject_ids == ["s4", "s2"]
    assert len(data.store) == 6


def test_the_mean_is_of_some_training_volumes_where_there_are_many(shards, monkeypatch):
    monkeypatch.setattr(diagnose, "MAX_MEAN_VOLUMES", 2)
    data = TrainingData(stage(), Store(shards, "low"), None)
    pairs = [(data.clean(a) + data.clean(b)) / 2 for a in range(6) for b in range(a)]
    found = ExaminedNetwork(nn.Identity(), stage(), shards, None, DiagnosticsStage()).mean
    assert any(torch.allclose(found, pair, atol=1e-6) for pair in pairs)


def test_volume_and_condition_are_made_once_for_all_times(shards, monkeypatch):
    read, reduced = [], []
    clean, reduce = TrainingData.clean, LowResolution.reduce
    monkeypatch.setattr(TrainingData, "clean", lambda self, *given: read.append(given) or clean(self, *given))
    monkeypatch.setattr(LowResolution, "reduce", lambda self, x: reduced.append(x) or reduce(self, x))
    errors(Known(lambda x, tau, condition: condition), shards, None, "super_res", num_volumes=2)
    assert (len(read), len(reduced)) == (6 + 2, 2)


def test_a_network_that_returns_its_input_has_the_error_of_the_noise(shards, texts):
    def rescaled(x: Tensor, tau: Tensor, **_: Tensor) -> Tensor:
        return x / alpha_bar(tau / 1000).sqrt()[:, None, None, None, None]

    found = errors(Known(rescaled), shards, texts)
    assert same(found, "network", "noisy_input", 1e-4)
    for t in TIMES:  # the error of a known noise: its variance (1 - a) / a
        a = float(alpha_bar(torch.tensor(t)))
        values = [value for (_, source, time, _), value in found.items() if source == "noisy_input" and time == t]
        assert np.mean(values) == pytest.approx((1 - a) / a, rel=0.2)


def test_own_text_another_and_none_are_told_apart(shards, texts):
    def by_text(x: Tensor, tau: Tensor, text: Tensor, drop_text: Tensor) -> Tensor:
        return torch.where(drop_text, 9.0, text.mean()) + 0 * x

    found = errors(Known(by_text), shards, texts)
    states = {name: texts.states(row, 0).mean() for name, row in (("s4", 4), ("s2", 2))}
    clean = TrainingData(stage(), Store(shards, "low", "validation"), None).clean(0)

    def error(value: float) -> float:
        return float((value - clean[0]).square().mean())

    assert found["s4", "network", 0.5, "image"] == pytest.approx(error(states["s4"]), rel=1e-4)
    assert found["s4", "other_text", 0.5, "image"] == pytest.approx(error(states["s2"]), rel=1e-4)
    assert found["s4", "no_text", 0.5, "image"] == pytest.approx(error(9.0), rel=1e-4)


def test_super_resolution_is_given_the_clean_low_resolution(shards):
    found = errors(Known(lambda x, tau, condition: condition), shards, None, "super_res")
    assert same(found, "network", "enlarged")
    assert {source for _, source, *_ in found} == {"network", "mean_volume", "noisy_input", "enlarged"}
    data = TrainingData(stage("super_res", crop_size=None), Store(shards, "high", "validation"), None)
    clean = data.clean(0)
    low = LowResolution(4).enlarge(clean[None, :, ::4, ::4, ::4])[0]
    assert found["s4", "enlarged", 0.25, "airway"] == pytest.approx(float((low - clean)[2].square().mean()), rel=1e-4)


def test_fewer_volumes_are_some_of_the_same_and_a_single_one_has_no_other_text(shards, texts):
    network = Known(lambda x, tau, **given: x)
    both, alone = (errors(network, shards, texts, num_volumes=count) for count in (2, 1))
    assert "other_text" in {source for _, source, *_ in both}
    assert "other_text" not in {source for _, source, *_ in alone}
    assert len({subject for subject, *_ in alone}) == 1
    assert alone == {key: both[key] for key in alone}


# --- super-resolution of true low-resolution volumes ---


def test_a_perfect_super_resolution_has_the_measures_and_masks_of_the_real_volume(shards, tmp_path, monkeypatch):
    run = open_run(make_run(tmp_path), sampling_with(tmp_path, None))
    clean = TrainingData(stage("super_res", crop_size=None), Store(shards, "high", "validation"), None).clean(0)
    given = []

    def perfect(low: Tensor, seeds: list[int], text: Tensor | None) -> np.ndarray:
        given.append((low, seeds, text))
        return clean[None].numpy()

    monkeypatch.setattr(run, "super_resolve", perfect)
    rows = list(super_resolution(run, clean, 7, None))
    values = {(row["source"], row["quantity"]): row["value"] for row in rows}
    measured = {name for source, name in values if source == "real"}
    assert {"airway_volume_mm3", "effusion_volume_ml", "airway_found"} <= measured
    assert [values["network", name] for name in measured] == [values["real", name] for name in measured]
    dice = ("lobe_dice", "airway_dice", "vessel_dice")
    assert [values["network", name] for name in dice] == [1.0] * 3
    assert all(0 < values["enlarged", name] < 0.9 for name in dice)
    assert torch.equal(given[0][0], clean[None, :, ::4, ::4, ::4])
    assert given[0][1:] == ([7], None)


def test_an_image_alone_has_measures_and_no_dice(shards, tmp_path):
    run = open_run(make_run(tmp_path, ("image",)), sampling_with(tmp_path, None))
    settings = stage("super_res", ("image",), crop_size=None)
    clean = TrainingData(settings, Store(shards, "high", "validation"), None).clean(0)
    names = {row["quantity"] for row in super_resolution(run, clean, 0, None)}
    assert "airway_volume_mm3" in names
    assert not [name for name in names if name.endswith("_dice")]


# --- the verb ---


def command(training_data: Path, folder: Path, *more: str) -> list[str]:
    shards = [str(training_data / f"store/{k}") for k in (0, 1)]
    return ["diagnose", "--weights", str(folder), "--store", *shards, "--out", str(folder / "d.csv"), "--quiet", *more]


def test_the_verb_writes_both_tests_and_their_provenance(training_data, tmp_path, monkeypatch):
    make_run(tmp_path)
    monkeypatch.setattr("medsyn.methods.diagnose.encoder_identity", lambda folder: "tiny")
    embeddings = ["--embeddings", str(training_data / "embeddings.json")]
    assert main(command(training_data, tmp_path, *embeddings, "--num-volumes", "2")) == 0
    rows = read_csv(tmp_path / "d.csv", COLUMNS)
    counts = {name: sum(row["network"] == name and row["t"] != "" for row in rows) for name in ("low_res", "super_res")}
    assert counts == {"low_res": 2 * 5 * 4 * 6, "super_res": 2 * 5 * 4 * 4}
    assert {row["source"] for row in rows if row["part"] == "super_resolution"} == {"network", "enlarged", "real"}
    record = read_json(tmp_path / "d.json")
    assert (record["config"]["num_volumes"], set(record["weights"])) == (2, {"low_res", "super_res"})
    before = (tmp_path / "d.csv").read_bytes()
    assert main(command(training_data, tmp_path, *embeddings, "--num-volumes", "2")) == 0
    assert (tmp_path / "d.csv").read_bytes() == before


def test_a_super_resolution_with_text_is_given_the_text_and_a_mean_is_reduced_as_in_training(
    training_data, tmp_path, monkeypatch
):
    make_run(tmp_path, text=True, reduction="mean")
    monkeypatch.setattr("medsyn.methods.diagnose.encoder_identity", lambda folder: "tiny")
    given, resolve = [], Run.super_resolve

    def noted(run: Run, low: Tensor, seeds: list[int], text: Tensor) -> np.ndarray:
        given.append((low, text))
        return resolve(run, low, seeds, text=text)

    monkeypatch.setattr(Run, "super_resolve", noted)
    assert main(command(training_data, tmp_path, "--embeddings", str(training_data / "embeddings.json"))) == 0
    sources = {row["source"] for row in read_csv(tmp_path / "d.csv") if row["network"] == "super_res"}
    assert {"other_text", "no_text"} <= sources
    texts = Embeddings(training_data / "embeddings.json", stage().sections)
    assert all(torch.equal(text[0], texts.states(row, 0)) for (_, text), row in zip(given, (4, 2), strict=True))
    settings = stage("super_res", crop_size=None)
    clean = TrainingData(settings, Store([training_data / "store/0"], "high", "validation"), None).clean(0)
    assert torch.allclose(given[0][0][0], torch.nn.functional.avg_pool3d(clean, 4), atol=1e-6)


@pytest.mark.parametrize(
    ("more", "identity", "words"),
    [
        ([], "tiny", "low_res.safetensors: this network takes text; give the embeddings of the reports (--embeddings)"),
        (["--embeddings"], "other", "embeddings.json: made by another language model than the run's"),
        (["--embeddings", "--num-volumes", "0"], "tiny", "num_volumes"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line_and_writes_nothing(
    more, identity, words, training_data, tmp_path, monkeypatch, capsys
):
    make_run(tmp_path)
    monkeypatch.setattr("medsyn.methods.diagnose.encoder_identity", lambda folder: identity)
    if more:
        more = [more[0], str(training_data / "embeddings.json"), *more[1:]]
    assert main(command(training_data, tmp_path, *more)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("d.*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": [32, 16, 16]}, "preprocess.size of this store is [16, 16, 16], expected [32, 16, 16]"),
        ({"field_of_view_mm": [300.0, 316.0, 316.0]}, "is [292.0, 316.0, 316.0], expected [300.0, 316.0, 316.0]"),
    ],
)
def test_a_store_on_another_grid_than_the_settings_is_refused(change, words, training_data, tmp_path, capsys):
    make_run(tmp_path)
    settings = read_json(tmp_path / "sampling.json")
    write_json(tmp_path / "sampling.json", settings | {"preprocess": settings["preprocess"] | change})
    assert main(command(training_data, tmp_path)) == 2
    said = capsys.readouterr().err
    assert f"store/0: preprocess.{next(iter(change))}" in said
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("d.*"))


# --- the numbers of the table ---


def table_of(path: Path, errors: dict[str, list[float]]) -> list[dict]:
    """Return the rows for one channel, with errors by source."""
    rows = [
        {"part": "denoising", "network": "low_res", "subject_id": f"s{k}", "source": source, "t": 0.5}
        | {"quantity": "image", "value": value}
        for source, values in errors.items()
        for k, value in enumerate(values)
    ]
    write_csv(path, rows, COLUMNS)
    return denoising_rows(read_diagnosis(path), CONFIG)


def test_the_error_is_compared_with_the_best_predictor_without_a_network_and_with_that_without_text(tmp_path):
    errors = {"network": [0.1, 0.3], "mean_volume": [0.5, 0.3], "noisy_input": [2, 3], "no_text": [0.4, 0.4]}
    (row,) = table_of(tmp_path / "d.csv", errors | {"other_text": [0.3, 0.3]})
    assert (row["value"], row["n"], row["t"]) == (pytest.approx(0.2), 2, "0.5")
    assert row["mean_volume"] == pytest.approx(0.4)
    assert row["ratio"] == pytest.approx(0.5)
    assert row["text_share"] == pytest.approx(0.5)
    assert row["text_share_ci_low"] <= row["text_share"] <= row["text_share_ci_high"]
    assert row["other_text"] == pytest.approx(0.3)
    (worse,) = table_of(tmp_path / "d.csv", errors | {"noisy_input": [0.05, 0.05]})
    assert worse["ratio"] == pytest.approx(4)
    (plain,) = table_of(tmp_path / "d.csv", {name: errors[name] for name in ("network", "mean_volume")})
    assert "text_share" not in plain


def test_a_table_without_the_network_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"d\.csv: low_res image has no row of source 'network', expected one per"):
        table_of(tmp_path / "d.csv", {"mean_volume": [1.0, 2.0]})


def test_a_table_without_a_value_of_the_mean_volume_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"d\.csv: low_res image has no value of source 'mean_volume', expected one per"
    ):
        table_of(tmp_path / "d.csv", {"network": [1.0], "mean_volume": [None]})


def test_real_measures_of_a_subject_that_the_cohort_lacks_are_refused(tmp_path):
    columns = ("subject_id", "findings", "impression")
    write_csv(tmp_path / "cohort.csv", [dict.fromkeys(columns, "a")], columns)
    with pytest.raises(InputError, match=r"cohort\.csv: no row for subject b of --measures real \(1 missing\)"):
        labels_of_reports(str(tmp_path / "cohort.csv"), ["a", "b"], CONFIG)


def test_airways_are_in_ml_beside_those_of_the_samples_and_a_missing_value_is_counted(tmp_path):
    values = {"network": [4000, None], "enlarged": [1000, 0], "real": [30000, 20000]}
    rows = [
        {"part": "super_resolution", "network": "super_res", "subject_id": k, "source": source, "t": ""}
        | {"quantity": "airway_volume_mm3", "value": value}
        for source, both in values.items()
        for k, value in enumerate(both)
    ]
    write_csv(tmp_path / "d.csv", rows, COLUMNS)
    sampled = {"a": {"airway_volume_mm3": 500.0}, "b": {"airway_volume_mm3": 1500.0}}
    (row,) = super_resolution_rows(read_diagnosis(tmp_path / "d.csv"), sampled, CONFIG)
    assert (row["quantity"], row["n"], row["num_missing"]) == ("airway_volume_ml", 1, 1)
    assert [row[name] for name in ("value", "enlarged", "real", "sampled")] == [4, 0.5, 25, 1]
    assert 20 <= row["real_ci_low"] <= row["real_ci_high"] <= 30


def measured(values: list[float | None]) -> dict[str, dict[str, float | None]]:
    """Return measures by sample: effusions, and the same as ratio."""
    return {f"r{k}": {"effusion_volume_ml": v, "cardiothoracic_ratio": v} for k, v in enumerate(values)}


def labels(values: list[int], heart: list[int] | None = None) -> dict[str, dict[str, int]]:
    hearts = heart or values
    return {f"r{k}": {"pleural_effusion": v, "cardiomegaly": hearts[k]} for k, v in enumerate(values)}


def test_perfect_reversed_and_constant_measures_have_the_areas_1_0_and_a_half():
    truth = [0, 0, 1, 1]
    for values, area in (([1, 2, 3, 4], 1), ([4, 3, 2, 1], 0), ([5, 5, 5, 5], 0.5), ([1, 3, 2, 4], 0.75)):
        row, _ = prompt_rows(labels(truth), measured(values), labels(truth), measured([1, 2, 3, 4]), CONFIG)
        assert row["value"] == pytest.approx(area)
        assert row["real"] == 1
        assert 0 <= row["value_ci_low"] <= area <= row["value_ci_high"] <= 1
        assert row["value_ci_low"] < row["value_ci_high"]
        assert [row[name] for name in ("n_positive", "n_negative", "n_positive_real", "n")] == [2, 2, 2, 4]


def test_an_area_without_positives_is_missing_and_said_to_be():
    _, heart = prompt_rows(
        labels([0, 1, 1], [0, 0, 0]), measured([1, 2, None]), labels([0, 1, 1], [0, 1, 0]), measured([1, 2, 3]), CONFIG
    )
    assert (heart["value"], heart["value_ci_low"], heart["n_positive"], heart["n_negative"]) == (None, None, 0, 2)
    assert heart["num_missing"] == 1
    assert heart["note"] == "cardiomegaly: no area for prompts: 0 positive and 2 negative, expected some of both"
    assert heart["real"] == pytest.approx(0.5)


def test_the_interval_of_an_area_holds_the_true_one_as_often_as_it_says():
    from scipy import stats

    random = np.random.default_rng(0)
    truth, labels = stats.norm.cdf(1.2 / np.sqrt(2)), np.repeat([0, 1], [25, 15])
    held = []
    for _ in range(300):
        area = area_under_roc(random.normal(1.2 * labels), labels)
        low, high = area_under_roc_interval(area, 15, 25)
        held.append(low <= truth <= high)
    assert 0.92 <= np.mean(held) <= 0.99


def test_the_interval_of_an_area_is_symmetric_and_open_at_the_ends():
    low, high = area_under_roc_interval(0.8, 10, 30)
    assert area_under_roc_interval(0.2, 10, 30) == pytest.approx((1 - high, 1 - low))
    assert 0.55 < low < 0.8 < high < 0.95
    low, high = area_under_roc_interval(1.0, 10, 10)
    assert 0.7 < low < 0.95
    assert high == 1
    assert area_under_roc_interval(1.0, 100, 100)[0] > low


def test_a_ratio_of_means_and_its_bounds():
    assert ratio_of_means([], num_bootstrap=10, seed=0) == (None, None, None)
    assert ratio_of_means([(1, 2)], num_bootstrap=10, seed=0) == (0.5, None, None)
    assert ratio_of_means([(1, 2), (2, 4)], num_bootstrap=10, seed=0) == (0.5, 0.5, 0.5)
    ratio, low, high = ratio_of_means([(1, 2), (3, 2)], num_bootstrap=500, seed=0)
    assert (ratio, low, high) == (1, 0.5, 1.5)


# --- the figure ---


def figure_rows(channels: tuple[str, ...]) -> list[dict[str, str]]:
    numbers = dict.fromkeys(("value", "value_ci_low", "value_ci_high", "mean_volume", "noisy_input"), "0.1")
    errors = [
        {"part": "denoising", "network": network, "quantity": channel, "t": str(t)} | numbers
        for network in ("low_res", "super_res")
        for channel in channels
        for t in TIMES
    ]
    airway = {"part": "super_resolution", "network": "super_res", "quantity": "airway_volume_ml"} | numbers
    area = {"part": "prompts", "network": "", "quantity": "emphysema", "value": "", "n_positive": "0"}
    return [*errors, airway | {"real": "3", "sampled": "1"}, area | {"n_negative": "9"}]


@pytest.mark.parametrize("channels", [CHANNELS, ("image",)])
def test_the_figure_has_a_panel_per_channel_and_says_which_area_is_missing(channels):
    figure = diagnostic_panels(figure_rows(channels), phantom=True)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles[: 2 * len(channels)] == [*channels, *channels]
    assert titles[2 * len(channels) :] == ["airway (ml), mean of the volumes", "area under ROC: measure against prompt"]
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["one class\nonly"]
    assert sum("How to read:" in text.get_text() for text in figure.texts) == 3


def test_the_figure_is_made_of_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["figure", "diagnostic_panels", "--file", "a", "x.csv", "y.csv", "--out", "f.png"]) == 2
    assert "--file names 2 files, expected one: the table of the diagnostics" in capsys.readouterr().err
