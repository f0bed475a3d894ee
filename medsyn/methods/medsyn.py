"""The kind `medsyn`: our model, its ablations and its language models. The networks are `medsyn.methods.run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from medsyn.config import Config, MedSynConfig, MethodConfig, ModelStage, SamplingStage, Section, load_stage
from medsyn.errors import InputError
from medsyn.layout import Layout
from medsyn.methods.base import Kind, Network, Training

if TYPE_CHECKING:
    from medsyn.methods.run import Run


class MedSyn(Kind):
    """Two denoisers, of low resolution and of super-resolution, and a text encoder, joined to a run.json."""

    entry: ClassVar[type[MethodConfig]] = MedSynConfig

    def fault(self, config: Config, name: str) -> str | None:
        """Return that the text encoder, or the method whose super_res is used, does not exist or fit, or None."""
        entry = medsyn_entry(config, name)
        if entry.text_encoder not in config.text.encoders:
            return f"methods.{name}.text_encoder: no encoder named '{entry.text_encoder}' in text"
        if entry.super_res_from is None:
            return None
        found = f"methods.{name}.super_res_from: '{entry.super_res_from}'"
        donor = config.methods.get(entry.super_res_from)
        if not isinstance(donor, MedSynConfig) or donor.super_res_from is not None or donor.channels != entry.channels:
            return f"{found} must be a trained method with the same channels"
        if config.super_res.text and donor.text_encoder != entry.text_encoder:
            return (
                f"{found} has text_encoder {donor.text_encoder}, this method has {entry.text_encoder}; with"
                " super_res.text both must be the same: leave the key out"
            )
        return None

    def networks(self, config: Config, name: str) -> dict[str, Network]:
        """Return low_res and, unless the entry samples with another method's, super_res."""
        entry = medsyn_entry(config, name)
        found = {"low_res": Network(network_stage(config, "low_res", entry), text_encoder=entry.text_encoder)}
        if entry.super_res_from is None:
            encoder = entry.text_encoder if config.super_res.text else None
            found["super_res"] = Network(network_stage(config, "super_res", entry), text_encoder=encoder)
        return found

    def train(self, training: Training) -> None:
        """Train a denoiser."""
        from medsyn.training.denoiser import train_denoiser

        stage = load_stage(ModelStage, training.config)
        train_denoiser(stage, training.store, training.embeddings, training.state, training.out)

    def sampling(self, config: Config, name: str) -> tuple[str, Section]:
        """Return the settings that all methods of this kind share."""
        return "sampling", SamplingStage(sampling=config.sampling, preprocess=config.preprocess)

    def inputs(self, config: Config, name: str) -> list[str]:
        """Return run.json, which is made of the networks and names them."""
        return [Layout(config.results_dir).run(name)]

    def open(self, config: Path, files: Sequence[Path], work: Path) -> Run:
        """Load the networks of run.json onto the GPU if there is one."""
        from medsyn.methods.run import open_run, sampling_with

        if len(files) != 1:
            raise InputError(
                f"{config}: {len(files)} files of the model are given, expected one: its run.json (--files)"
            )
        return open_run(files[0], sampling_with(files[0], config))

    def training_tables(self, config: Config, name: str) -> list[str]:
        """Return the tables of low_res, of the super_res that the entry samples with, and of its language model."""
        entry, layout = medsyn_entry(config, name), Layout(config.results_dir)
        return [
            layout.training_metrics(name, "low_res"),
            layout.training_metrics(entry.super_res_from or name, "super_res"),
            layout.text_encoder(entry.text_encoder),
        ]

    def parts(self, config: Config, name: str) -> dict[str, str]:
        """Return the files that run.json of an entry joins: both networks and the text encoder."""
        entry, layout = medsyn_entry(config, name), Layout(config.results_dir)
        return {
            "low_res": layout.network(name, "low_res"),
            "super_res": layout.network(entry.super_res_from or name, "super_res"),
            "text_encoder": layout.text_encoder(entry.text_encoder),
        }


def medsyn_entry(config: Config, name: str) -> MedSynConfig:
    """Return entry `name` of the configuration's methods, which must be of this kind."""
    entry = config.methods[name]
    assert isinstance(entry, MedSynConfig)
    return entry


def network_stage(config: Config, stage: Literal["low_res", "super_res"], entry: MedSynConfig) -> ModelStage:
    """Return all that the training of one denoiser depends on."""
    model = config.low_res if stage == "low_res" else config.super_res
    text: dict[str, Any] = {"num_tokens": config.text.num_tokens, "sections": config.text.sections}
    return ModelStage(
        stage=stage,
        channels=entry.channels,
        unet=model.unet,
        train=model.train,
        window_hu=config.preprocess.window_hu,
        low_res_factor=config.preprocess.low_res_factor,
        low_res_reduction=config.low_res.reduction,
        **(text if stage == "low_res" or config.super_res.text else {}),
    )


KIND = MedSyn()
