"""Say where everything lies under the results folder: one layout for the rules and the verbs.

Every method returns a path as text with forward slashes. Arguments may be Snakemake wildcards, such as "{shard}".
"""

from __future__ import annotations

from dataclasses import dataclass

REAL = "real"
"""Stands in the place of a method's name for the CTs of the cohort."""


@dataclass(frozen=True)
class Layout:
    """Paths under the results folder `root` of one run."""

    root: str

    def config(self, stage: str) -> str:
        """Return the settings of a stage."""
        return f"{self.root}/config/{stage}.json"

    def log(self, *parts: str) -> str:
        """Return the log of a job: the rule's name, then its wildcards."""
        return f"{self.root}/logs/{'/'.join(parts)}.log"

    def state(self, *parts: str) -> str:
        """Return the folder that keeps what a stopped job has finished; the job removes it at its end."""
        return f"{self.root}/state/{'/'.join(parts)}"

    # --- the cohort ---

    def phantom(self, shard: str) -> str:
        """Return the folder of a shard of the embedded cohort."""
        return f"{self.root}/phantom/{shard}"

    def phantom_reports(self) -> str:
        """Return the embedded cohort's reports without images."""
        return f"{self.root}/phantom/text_only.csv"

    def cohort(self, name: str = "cohort") -> str:
        """Return a table of the cohort: cohort, rejects, reports or given_labels."""
        return f"{self.root}/cohort/{name}.csv"

    def labels(self) -> str:
        """Return the labels parsed from the reports."""
        return f"{self.root}/labels.csv"

    # --- volumes ---

    def preprocessed(self, shard: str) -> str:
        """Return the folder of a shard's CTs on the model grid."""
        return f"{self.root}/preprocessed/{shard}"

    def masks(self, shard: str) -> str:
        """Return the folder of a shard's masks."""
        return f"{self.root}/masks/{shard}"

    def store(self, shard: str) -> str:
        """Return a shard of the training store."""
        return f"{self.root}/store/{shard}"

    def quality(self, name: str) -> str:
        """Return a table of quality control: masks, alignment or labels."""
        return f"{self.root}/qc/{name}.csv"

    # --- text and models ---

    def text_encoder(self, encoder: str) -> str:
        """Return the folder of a language model."""
        return f"{self.root}/text/{encoder}/model"

    def embeddings(self, encoder: str) -> str:
        """Return the index of the embeddings that a language model made of every report."""
        return f"{self.root}/text/{encoder}/embeddings.json"

    def network(self, method: str, network: str) -> str:
        """Return the trained weights of one of a method's networks."""
        return f"{self.root}/models/{method}/{network}.safetensors"

    def training_metrics(self, method: str, network: str) -> str:
        """Return the table of losses and rates of a training run."""
        return f"{self.root}/models/{method}/{network}_metrics.csv"

    def training_preview(self, method: str, network: str) -> str:
        """Return the picture that a training run ends with."""
        return f"{self.root}/models/{method}/{network}_preview.png"

    def run(self, method: str) -> str:
        """Return the file that ties a method's networks together for sampling."""
        return f"{self.root}/models/{method}/run.json"

    # --- samples and what is made of them ---

    def prompts(self, prompt_set: str) -> str:
        """Return a table of prompts."""
        return f"{self.root}/prompts/{prompt_set}.csv"

    def samples(self, method: str, prompt_set: str, shard: str) -> str:
        """Return the folder of the volumes with which a method answers a shard of prompts."""
        return f"{self.root}/samples/{method}/{prompt_set}/{shard}"

    def measures(self, method: str, prompt_set: str, shard: str) -> str:
        """Return the anatomical measures of sampled volumes."""
        return f"{self.root}/measures/{method}/{prompt_set}/{shard}.csv"

    def real_measures(self, shard: str) -> str:
        """Return the anatomical measures of a shard's CTs."""
        return f"{self.root}/measures/{REAL}/{shard}.csv"

    def regions(self, method: str, shard: str) -> str:
        """Return the measures by side and lobe of a method's answers to the prompts of Table VIII, or of the CTs."""
        return f"{self.root}/regions/{method}/{shard}.csv"

    def extractor(self) -> str:
        """Return the weights of the feature extractor."""
        return f"{self.root}/features/extractor.safetensors"

    def features(self, method: str, prompt_set: str, shard: str) -> str:
        """Return the features of sampled volumes."""
        return f"{self.root}/features/{method}/{prompt_set}/{shard}.npz"

    def real_features(self, shard: str) -> str:
        """Return the features of a shard's CTs."""
        return f"{self.root}/features/{REAL}/{shard}.npz"

    def training_features(self, shard: str) -> str:
        """Return the features of a shard's CTs of the training split."""
        return f"{self.root}/features/training/{shard}.npz"

    def nearest(self) -> str:
        """Return the nearest real volumes of every generated one."""
        return f"{self.root}/nearest.csv"

    def classification(self, finding: str) -> str:
        """Return the scores of the classifiers of a finding."""
        return f"{self.root}/classify/{finding}.csv"

    def segmentation_scores(self) -> str:
        """Return the Dice scores of generated masks."""
        return f"{self.root}/segmentation_scores.csv"

    def diagnostics(self, method: str) -> str:
        """Return what `medsyn diagnose` found in a method's networks, volume by volume."""
        return f"{self.root}/diagnostics/{method}.csv"

    def diagnostics_provenance(self, method: str) -> str:
        """Return the provenance of that table."""
        return f"{self.root}/diagnostics/{method}.json"

    def study(self) -> str:
        """Return the folder of the reader study; its key lies beside it."""
        return f"{self.root}/study/blind"

    def study_key(self) -> str:
        """Return the key of the reader study, which is not given to readers."""
        return f"{self.root}/study/blind.key.json"

    # --- what people read ---

    def table(self, name: str) -> str:
        """Return a table, such as table1."""
        return f"{self.root}/eval/{name}.csv"

    def table_provenance(self, name: str) -> str:
        """Return the provenance of a table."""
        return f"{self.root}/eval/{name}.json"

    def figure(self, name: str) -> str:
        """Return a figure, such as figure3."""
        return f"{self.root}/eval/figures/{name}.png"

    def viewer(self) -> str:
        """Return the HTML page that shows some of the run's volumes."""
        return f"{self.root}/viewer.html"

    def report(self) -> str:
        """Return the HTML page about the whole run."""
        return f"{self.root}/report.html"
