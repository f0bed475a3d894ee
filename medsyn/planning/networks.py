"""The networks of a configuration as the planner counts them: how to build each, and the shapes that it is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsyn.config import AugmentationConfig, Config, FeaturesConfig, ModelStage, TextEncoderConfig, stage_configs
from medsyn.live_bytes import META
from medsyn.models.fast.unet import FastUNet
from medsyn.models.resnet3d import ResNet3d, one_finding_classifier
from medsyn.models.weights import build
from medsyn.planning.sampling import Sampling
from medsyn.training.denoiser import denoiser_training
from medsyn.training.need import TrainingShapes


def denoiser(config: Config, kind: str) -> ModelStage:
    """Return the stage of the `kind` (low_res or super_res) network that needs the most memory: the most channels."""
    stages = (stage_configs(config).get(f"{kind}_{name}") for name in config.methods)
    return max((stage for stage in stages if isinstance(stage, ModelStage)), key=lambda stage: len(stage.channels))


def text_width(config: Config) -> int:
    """Return the width of the widest text states that condition the images."""
    return max(bert_sizes(encoder)["hidden_size"] for encoder in config.text.encoders.values())


def training_of(config: Config, stage: ModelStage) -> TrainingShapes:
    """Describe the training of a denoiser on batches without data, shaped as `medsyn.training.data.TrainingData`."""
    width = text_width(config)
    shapes = partial(batch_of, config, stage, width)
    return denoiser_training(stage, width if stage.sections else None, shapes)


def batch_of(config: Config, stage: ModelStage, width: int, count: int) -> dict[str, Tensor]:
    """Make `count` samples of a stage on the meta device."""
    size = config.preprocess.size
    empty = partial(torch.empty, device=META)
    extra: dict[str, Tensor] = {}
    if stage.sections:
        text = empty(count, stage.num_tokens, width)
        extra |= {"text": text, "drop_text": empty(count, dtype=torch.bool)}
    shape: tuple[int, ...]
    if stage.stage == "super_res":
        shape = (count, len(stage.channels), *(stage.train.crop_size or size))
        extra |= {"condition_noise": empty(shape), "condition_level": empty(count)}
    else:
        shape = (count, len(stage.channels), *(side // stage.low_res_factor for side in size))
    return {"x0": empty(shape), "epsilon": empty(shape), "t": empty(count), **extra}


def sampling_of(config: Config) -> Sampling:
    """Describe the sampling of the method with the most channels."""
    low, high = (denoiser(config, kind) for kind in ("low_res", "super_res"))
    width = text_width(config)
    widest = max(config.text.encoders.values(), key=lambda encoder: bert_sizes(encoder)["hidden_size"])

    def language() -> nn.Module:
        from transformers import BertConfig, BertModel

        return BertModel(BertConfig(**bert_sizes(widest)), add_pooling_layer=False)

    def low_res() -> FastUNet:
        network = build(low, width)
        network.reserve_statistics([edge // config.preprocess.low_res_factor for edge in config.preprocess.size])
        return network

    return Sampling(
        low_res=low_res,
        super_res=lambda: build(high, width if high.sections else None),
        language=language,
        size=config.preprocess.size,
        factor=config.preprocess.low_res_factor,
        text=(low.num_tokens, width),
    )


def features_of(
    config: FeaturesConfig, size: tuple[int, int, int], batch_size: int
) -> tuple[Any, Callable[[], Tensor]]:
    """Return how to build the feature extractor, and a batch of whole volumes as it reads them."""

    def batch() -> Tensor:
        return torch.empty(batch_size, 1, *size, device=META).to(memory_format=torch.channels_last_3d)

    return lambda: ResNet3d(config.depth, config.base_width), batch


def classifier_training(config: AugmentationConfig, size: tuple[int, ...]) -> TrainingShapes:
    """Describe training Table VI's classifier on volumes of `size` (D, H, W), as `medsyn.training.findings` does it."""

    def batch(count: int) -> dict[str, Tensor]:
        volumes = torch.empty(count, 1, *size, device=META).to(memory_format=torch.channels_last_3d)
        return {"volumes": volumes, "labels": torch.empty(count, 1, device=META)}

    def loss(network: nn.Module, given: dict[str, Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(network(given["volumes"]), given["labels"])

    return TrainingShapes(lambda: one_finding_classifier(config.base_width), loss, batch)


def text_training(config: TextEncoderConfig) -> TrainingShapes:
    """Describe the pretraining of a language model on inputs of the greatest length, `max_tokens`."""
    from transformers import BertConfig, BertForMaskedLM

    from medsyn.text.bert import ReportBert

    sizes = bert_sizes(config)

    def network() -> nn.Module:
        language = BertForMaskedLM(BertConfig(**sizes))
        return ReportBert(language)

    def batch(count: int) -> dict[str, Tensor]:
        names = ("ids", "mask", "segments", "labels")
        tokens = {name: torch.empty(count, config.max_tokens, dtype=torch.long, device=META) for name in names}
        return {**tokens, "paired": torch.empty(count, dtype=torch.long, device=META)}

    return TrainingShapes(network, lambda network, given: network(**given)["loss"], batch, config.mask_fraction)


def bert_sizes(config: TextEncoderConfig) -> dict[str, Any]:
    """Return the sizes of a language model: of the settings, a local checkpoint, or BERT-Base."""
    from transformers import BertConfig

    if config.init == "scratch":
        return {
            "vocab_size": config.vocabulary_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": 4 * config.hidden_size,
            "max_position_embeddings": config.max_tokens,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.dropout,
        }
    local = Path(config.init) / "config.json"
    found = BertConfig.from_json_file(str(local)) if local.is_file() else BertConfig()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: int(getattr(found, name)) for name in names}
    return sizes | {"max_position_embeddings": max(found.max_position_embeddings, config.max_tokens)}
