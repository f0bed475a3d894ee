"""Classifiers of findings as tasks of the training loop: killed and resumed, the verbs end with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_evaluation_verbs import WINDOW, run, train, verb

from medsyn.config import AugmentationConfig, AugmentationStage, FeaturesConfig, FeaturesStage
from medsyn.evaluate import classifier
from medsyn.files import write_json
from medsyn.training import findings, loop
from medsyn.training.findings import classifier_config, epoch_orders

__all__ = ["run"]  # a fixture
ROOT = Path(__file__).resolve().parents[1]
STOPPED = """
import os, signal, sys
from medsyn.cli import main
from medsyn.training import findings, loop

findings.CHECKPOINT_EVERY = 3
save, number = loop.save_checkpoint, 0

def save_and_stop(*arguments):
    global number
    save(*arguments)
    number += 1
    if number == int(sys.argv[1]):
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])

loop.save_checkpoint = save_and_stop
sys.exit(main(sys.argv[3:]))
"""


def stopped(after: int, signal_name: str, *arguments: object) -> int:
    """The verb in a process of its own with a checkpoint every 3 steps, stopped after so many of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", STOPPED, str(after), signal_name, *map(str, arguments)]
    return subprocess.run(words, env=environment, timeout=600, check=False).returncode


@pytest.mark.parametrize(("signal_name", "status"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 143)])
def test_a_stopped_feature_extractor_resumes_exactly(run, capsys, signal_name, status):
    features = FeaturesConfig(depth=10, base_width=2, num_epochs=5, batch_size=4, findings=("dense", "unasked"))
    write_json(run / "features.json", FeaturesStage(features=features, window_hu=WINDOW).model_dump(mode="json"))
    assert train(run, run / "whole.safetensors") == 0
    out, state = run / "stopped.safetensors", run / "state"
    arguments = ["train-features", "--config", run / "features.json", "--store", run / "store"]
    arguments += ["--labels", run / "labels.csv", "--out", out, "--state", state]
    assert stopped(2, signal_name, *arguments) == status
    assert not out.exists() and list(state.glob("*/step_*"))
    capsys.readouterr()
    assert verb(*arguments) == 0
    assert "resumes after step 6 of 10" in capsys.readouterr().err
    assert out.read_bytes() == (run / "whole.safetensors").read_bytes()
    assert not state.exists()


def test_a_changed_extractor_does_not_continue_the_old_one(run, capsys, monkeypatch):
    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    save = loop.save_checkpoint
    arguments = ["train-features", "--config", run / "features.json", "--store", run / "store"]
    arguments += ["--labels", run / "labels.csv", "--out", run / "a.safetensors", "--state", run / "state"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_stop)
        patch.setattr(findings, "CHECKPOINT_EVERY", 3)
        assert verb(*arguments) == 1 and list((run / "state").glob("*/step_00000003"))
    features = FeaturesConfig(depth=10, base_width=2, num_epochs=4, batch_size=4, findings=("dense", "never"))
    write_json(run / "features.json", FeaturesStage(features=features, window_hu=WINDOW).model_dump(mode="json"))
    assert verb(*arguments) == 0
    assert "resumes" not in capsys.readouterr().err and not (run / "state").exists()


def test_stopped_classifiers_resume_exactly(run, capsys, monkeypatch):
    """Killed in the third of four trainings: the first two are not made again, and all scores are the same bits."""
    scores: list[np.ndarray] = []
    of = classifier.scores_of

    def spy(*arguments):
        scores.append(of(*arguments))
        return scores[-1]

    monkeypatch.setattr(classifier, "scores_of", spy)
    settings = AugmentationConfig(num_folds=2, num_epochs=3, base_width=2, batch_size=4)
    stage = AugmentationStage(augmentation=settings, window_hu=WINDOW)
    write_json(run / "augmentation.json", stage.model_dump(mode="json"))
    arguments = ["classify", "--finding", "dense", "--config", run / "augmentation.json", "--split", "train"]
    arguments += ["--cohort", run / "cohort.csv", "--labels", run / "labels.csv", "--volumes", run / "volumes"]
    arguments += ["--prompts", run / "prompts.csv", "--samples", run / "samples"]
    assert verb(*arguments, "--out", run / "whole.csv") == 0
    assert stopped(7, "SIGKILL", *arguments, "--out", run / "stopped.csv") == -signal.SIGKILL
    state = run / ".stopped.csv.state"
    assert not (run / "stopped.csv").exists() and len([path for path in state.iterdir() if path.is_dir()]) == 3
    capsys.readouterr()
    assert verb(*arguments, "--out", run / "stopped.csv") == 0
    resumed = [line.partition(" from ")[0] for line in capsys.readouterr().err.splitlines() if "resumes" in line]
    assert resumed == [
        "dense baseline fold 1/2: resumes after step 9 of 9",
        "dense augmented fold 1/2: resumes after step 9 of 9",
        "dense baseline fold 2/2: resumes after step 3 of 9",
    ]
    assert len(scores) == 8 and all(np.array_equal(a, b) for a, b in zip(scores[:4], scores[4:], strict=True))
    assert (run / "stopped.csv").read_bytes() == (run / "whole.csv").read_bytes()
    assert not list(run.glob(".stopped*"))


def test_every_epoch_has_an_order_of_its_own():
    """What numbers hang on: permutations drawn one after the other from one generator, whole batches only."""
    config = classifier_config(7, batch_size=4, learning_rate=1e-3, seed=5, log_every=2)
    generator = torch.Generator().manual_seed(5)
    expected = [torch.randperm(9, generator=generator) for _ in range(4)]  # 2 batches per epoch, 7 steps
    found = epoch_orders(9, config)
    assert len(found) == 4 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
