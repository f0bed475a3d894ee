"""Name the files of an experiment from which its exhibits are made, as options of the commands that make them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from medsyn.config import Config
from medsyn.exhibits.needs import Need
from medsyn.layout import REAL, Layout
from medsyn.registry import METHODS


class Sources:
    """What an exhibit can ask for: files of methods and prompt sets, files of the cohort, names of methods.

    kind is everywhere `measures`, `features` or `volumes`, which is also the option that takes them.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.layout = Layout(config.results_dir)
        self._shards = [str(k) for k in range(config.cohort.num_shards)]
        self._sample_shards = [str(k) for k in range(config.sampling.num_shards)]

    @property
    def reference(self) -> str:
        """The method of the exhibits that show one method."""
        return self.config.reference

    def real(self, kind: str) -> Need:
        """Return the cohort's volumes, or their measures or features (which are of the validation split alone)."""
        path = {
            "measures": self.layout.real_measures,
            "features": self.layout.real_features,
            "volumes": self.layout.preprocessed,
        }[kind]
        return Need(kind, (REAL,), tuple(path(shard) for shard in self._shards))

    def made(self, kind: str, method: str, prompt_set: str) -> Need:
        """Return the volumes that a method sampled for a set of prompts, or their measures or features."""
        path = {
            "measures": self.layout.measures,
            "features": self.layout.features,
            "volumes": self.layout.samples,
        }[kind]
        paths = tuple(path(method, prompt_set, shard) for shard in self._sample_shards)
        return Need(kind, (method,), paths, sampled=(method, prompt_set))

    def real_regions(self) -> Need:
        """Return the measures by side and lobe of the CTs."""
        return Need("file", (REAL,), tuple(self.layout.regions(REAL, shard) for shard in self._shards))

    def regions(self, method: str) -> Need:
        """Return the measures by side and lobe of a method's answers to the prompts of Table VIII."""
        paths = tuple(self.layout.regions(method, shard) for shard in self._sample_shards)
        return Need("file", (method,), paths, sampled=(method, "faithfulness"))

    def training(self, method: str) -> list[Need]:
        """Return the metrics tables of all networks of a method; nothing for one that trains none."""
        kind = METHODS[self.config.methods[method].kind]
        tables = kind.training_tables(self.config, method)
        return [Need("training", (method,), tuple(tables))] if tables else []

    def diagnostics(self, method: str) -> Need:
        """Return what `medsyn diagnose` found in the networks of a method of kind `medsyn`."""
        return Need("file", (method,), (self.layout.diagnostics(method),))

    def sampling(self, method: str, prompt_set: str) -> Need:
        """Return the folders whose cost.json says what it cost to answer a set of prompts."""
        return replace(self.made("volumes", method, prompt_set), option="samples")

    def prompts(self, *prompt_sets: str) -> Need:
        """Return tables of prompts."""
        return Need("prompts", (), tuple(self.layout.prompts(name) for name in dict.fromkeys(prompt_sets)))

    def cohort(self) -> Need:
        """Return the table of the cohort."""
        return Need("cohort", (), (self.layout.cohort(),))

    def validation(self) -> list[Need]:
        """Return what restricts the cohort's volumes, measures and features to the validation split."""
        return [self.cohort(), Need("split", ("validation",))]

    def findings(self) -> Need:
        """Return the labels parsed from the reports of the cohort."""
        return Need("labels", (), (self.layout.labels(),))

    def masks(self) -> Need:
        """Return the folders of the masks of the cohort's volumes."""
        return Need("masks", (), tuple(self.layout.masks(shard) for shard in self._shards))

    def names(self, methods: Iterable[str]) -> list[Need]:
        """Return the names under which an exhibit prints methods."""
        return [Need("label", (name, self.config.methods[name].label)) for name in methods]

    def phantom(self) -> list[Need]:
        """Return the flag which says that all volumes are, or imitate, procedural phantoms."""
        return [Need("phantom")] if self.config.cohort.source == "phantom" else []

    def takes_text(self, method: str) -> bool:
        """Return whether a method is conditioned on text."""
        return self.config.methods[method].takes_text

    def text_encoder(self, method: str) -> str | None:
        """Return the language model of a method; None for a method without one of this package's."""
        return getattr(self.config.methods[method], "text_encoder", None)

    def channels(self, method: str) -> tuple[str, ...] | None:
        """Return the channels that a method samples; None for a method that is not a model of this package."""
        return getattr(self.config.methods[method], "channels", None)

    def compared(self) -> list[str]:
        """Return the methods of Table I and Figure 3, the reference first.

        Left out is a method that differs from the reference in its language model alone, unless it is the one that
        the others are compared with.
        """
        methods = [name for name in self.config.methods if name != self.reference]
        kept = [name for name in methods if name == self.config.compare_with or not self._is_language_model(name)]
        return [self.reference, *kept]

    def language_models(self) -> list[str]:
        """Return the reference and the methods with another language model."""
        own = self.text_encoder(self.reference)
        others = [name for name in self.config.methods if self.text_encoder(name) not in (None, own)]
        return [self.reference, *others]

    def _is_language_model(self, method: str) -> bool:
        """Return whether the language model is all that tells a method from the reference."""
        reference = self.reference
        return self.text_encoder(method) not in (None, self.text_encoder(reference)) and (
            self.channels(method) == self.channels(reference)
        )
