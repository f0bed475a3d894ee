"""What stands as `auto` in the settings of a training run: chosen for the memory, without effect on the gradient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, write_config
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import SIZE, make_embeddings, make_store, stage
from training_runs import SETTINGS, command, quadratic

from medsyn.cli import main
from medsyn.config import Config, ModelStage, TrainConfig
from medsyn.errors import InputError
from medsyn.planning.plan import _training
from medsyn.training import fitting
from medsyn.training.cost import GIB
from medsyn.training.data import Embeddings, Store, TrainingData
from medsyn.training.denoiser import denoising_task
from medsyn.training.fitting import HOST_FACTOR, fit_training
from medsyn.training.loop import train
from medsyn.training.need import Need
from medsyn.training.processes import make_accelerator
from medsyn.training.task import PhasedTask

MIB = 2**20
AUTO = {"micro_batch_size": "auto", "activation_checkpointing": "auto"}


@pytest.fixture
def free(monkeypatch):
    """Set the bytes that are free."""

    def set_free(size: float) -> None:
        monkeypatch.setattr(fitting, "available_bytes", lambda _device: int(size))

    return set_free


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the training data of a stage."""
    folder = tmp_path_factory.mktemp("data")
    stores = {
        name: Store([make_store(folder / name, size=SIZE)], name.removesuffix("_res"))
        for name in ("low_res", "high_res")
    }
    texts = make_embeddings(folder / "text.json")

    def of(settings: ModelStage) -> TrainingData:
        if settings.stage == "low_res":
            return TrainingData(settings, stores["low_res"], Embeddings(texts, settings.sections))
        return TrainingData(settings, stores["high_res"], None)

    return of


def toy(**fields) -> PhasedTask:
    """A task that needs as many MiB as samples in a micro-batch, and half with checkpointing or in bfloat16."""

    def memory(config: TrainConfig, _processes: int) -> Need:
        size = config.micro_batch * MIB
        return Need({"activations": size >> (config.activation_checkpointing is True) >> (config.precision == "bf16")})

    return replace(quadratic().phased(), memory=memory, **fields)


def fitted(settings: TrainConfig, folder: Path, task: PhasedTask | None = None):
    found = fit_training(task or toy(), settings, folder, make_accelerator("fp32"))
    return found.micro_batch_size, found.activation_checkpointing


@pytest.mark.parametrize("name", ["low_res", "super_res"])
def test_the_gradient_does_not_depend_on_the_choice(name, data, tmp_path):
    """After one step AdamW's first moment is a tenth of the gradient."""
    gradients = []
    for micro, checkpointing in ((4, False), (4, True), (2, False), (1, True)):
        made = stage(name, num_steps=1, micro_batch_size=micro, activation_checkpointing=checkpointing)
        state = tmp_path / f"{micro}{checkpointing}"
        train(denoising_task(made, data(made)), made.train, state)
        moments = load_file(state / "step_00000001" / "tensors.safetensors")
        gradients.append(torch.cat([value.flatten() for key, value in moments.items() if key.endswith("exp_avg")]))
    for other in gradients[1:]:
        assert (other - gradients[0]).abs().max() < 1e-5 * gradients[0].abs().max()


def test_the_largest_micro_batch_that_fits_without_checkpointing_comes_first(free, tmp_path):
    settings = SETTINGS.model_copy(update={"batch_size": 12, **AUTO})
    found = {}
    for mib in (100, 12, 11, 6, 1, 0.9, 0.5):
        free(HOST_FACTOR * mib * MIB)
        found[mib] = fitted(settings, tmp_path)
    whole = [(12, False), (12, False), (6, False), (6, False), (1, False)]
    assert list(found.values()) == [*whole, (1, True), (1, True)]


def test_a_number_stays_and_checkpointing_is_chosen_for_it(free, tmp_path):
    settings = SETTINGS.model_copy(update={"activation_checkpointing": "auto"})
    for mib, expected in ((2, False), (1, True)):
        free(HOST_FACTOR * mib * MIB)
        assert fitted(settings, tmp_path) == (2, expected)
    free(1)
    assert fit_training(toy(), SETTINGS, tmp_path, make_accelerator("fp32")) is SETTINGS


def test_processes_of_a_host_share_its_memory(free, tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(update=AUTO)
    free(HOST_FACTOR * 4 * MIB)
    assert fitted(settings, tmp_path) == (4, False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert fitted(settings, tmp_path) == (2, False)


def test_the_plan_is_one_line_of_the_log(free, tmp_path, caplog):
    free(HOST_FACTOR * 2 * MIB)
    with caplog.at_level("INFO", logger="medsyn"):
        fitted(SETTINGS.model_copy(update=AUTO), tmp_path)
    needed = f"{HOST_FACTOR * 2 / 1024:.3g} GiB"
    assert caplog.messages == [f"toy: plan: micro batch 2; training needs about {needed}, {needed} are free"]


def test_what_does_not_fit_is_refused_before_it_starts_with_what_would(free, tmp_path):
    """Checkpointing is off by a number, so it is a remedy, as is bfloat16; the larger of two crops does not fit."""
    crops = [{"crop_size": [8, 8, 8]}, {"crop_size": [4, 4, 4]}]
    task = toy(smaller=crops)
    memory = task.memory

    def cropped(config, processes):
        need = memory(config, processes)
        return need if getattr(config, "crop_size", 8) != [4, 4, 4] else Need({"activations": need.counted // 2})

    free(HOST_FACTOR * MIB / 2)
    with pytest.raises(InputError) as caught:
        train(replace(task, memory=cropped), SETTINGS.model_copy(update={"micro_batch_size": "auto"}), tmp_path / "s")
    assert str(caught.value) == (
        "toy: train.micro_batch_size auto: nothing fits: micro batch 1 needs about 0.00244 GiB, 0.00122 GiB are free;"
        ' set train.activation_checkpointing true, or set train.precision "bf16", or set train.crop_size [4, 4, 4], or'
        " take a machine with 1 GiB of free memory"
    )
    assert not (tmp_path / "s").exists()


def test_what_would_not_fit_either_is_not_named(free, tmp_path):
    free(1)
    with pytest.raises(InputError, match=r"checkpointing, micro batch 1 needs .* are free; take a machine with 1 GiB"):
        fitted(SETTINGS.model_copy(update=AUTO), tmp_path)


def test_a_resumed_run_keeps_its_micro_batch(free, tmp_path):
    settings = SETTINGS.model_copy(update=AUTO)
    free(HOST_FACTOR * 2 * MIB)
    first = train(toy(), settings.model_copy(update={"num_steps": 10}), tmp_path)
    assert first.chosen == {"micro_batch_size": 2, "activation_checkpointing": False}
    free(8 * GIB)
    assert train(toy(), settings, tmp_path).chosen == first.chosen
    free(HOST_FACTOR * MIB / 2)
    with pytest.raises(InputError, match=rf"micro batch 2 .* free; delete {tmp_path}, where a run with micro batch 2"):
        fitted(settings, tmp_path)


def test_smaller_crops_are_counted_and_accepted(data):
    made = stage("super_res", crop_size=(16, 16, 16))
    task = denoising_task(made, data(made))
    assert task.smaller == [{"crop_size": [16, 12, 12]}, {"crop_size": [16, 8, 8]}]
    sizes = [made.train.crop_size, *(change["crop_size"] for change in task.smaller)]
    counted = []
    for size in sizes:
        cropped = stage("super_res", crop_size=size)
        own = denoising_task(cropped, data(cropped)).memory(cropped.train, 1)
        assert task.memory(made.train.model_copy(update={"crop_size": size}), 1) == own
        counted.append(own.counted)
    assert counted == sorted(counted, reverse=True) and counted[-1] < 0.8 * counted[0]


def test_the_verb_records_what_it_chose(training_data, tmp_path, free):
    free(8 * GIB)
    for name, settings in (("auto", AUTO), ("given", {"micro_batch_size": 4})):
        assert (
            main([*command(training_data, tmp_path / f"{name}.safetensors", num_steps=1, **settings), "--quiet"]) == 0
        )
        with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
            record = json.loads(file.metadata()["provenance"])
        expected = {"micro_batch_size": 4, "activation_checkpointing": False} if name == "auto" else None
        assert record.get("chosen") == expected
    auto, given = (load_file(tmp_path / f"{name}.safetensors") for name in ("auto", "given"))
    assert all(torch.equal(auto[key], given[key]) for key in auto)


def test_a_task_that_does_not_count_its_memory_is_refused(tmp_path):
    settings = SETTINGS.model_copy(update={"micro_batch_size": "auto"})
    with pytest.raises(InputError, match=r"toy: train.micro_batch_size auto: this task .* expected a value"):
        train(quadratic(), settings, tmp_path)


@pytest.mark.parametrize("method", ["wgan", "alpha_gan", "hagan", "medical_diffusion.vqgan"])
def test_networks_that_normalise_over_a_micro_batch_have_no_auto(method, tmp_path, capsys):
    path = write_config(tmp_path / "mine.yaml")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    section = values["methods"]
    for name in method.split("."):
        section = section[name]
    section["train"]["micro_batch_size"] = "auto"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["plan", "--gpu-memory", "8", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"methods.{method}.train.micro_batch_size: found auto, expected a number" in err


def test_the_plan_of_a_configuration_counts_what_auto_would_take():
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["low_res"]["train"] |= AUTO | {"batch_size": 8}
    config = Config(**values)
    row = _training(config, "low_res", 1, 80 * GIB)
    assert row.configured == row.proposed and row.configured.settings["micro_batch_size"] == 8
    row = _training(config, "low_res", 1, 1)
    assert row.proposed is None and row.configured.settings["activation_checkpointing"] is True
