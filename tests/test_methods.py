"""Methods beside ours: a stranger's kind, a folder of another system, a command; from the configuration to files."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from conftest import ROOT, run_snakemake
from pages import example
from test_hostile_workflow import commands
from test_workflow import planned_jobs
from torch import Tensor, nn

from medsyn.cli import main
from medsyn.config import Config, Section, load_config, stage_configs, validate
from medsyn.errors import InputError
from medsyn.files import read_csv, write_csv
from medsyn.methods import external
from medsyn.methods.base import METHODS
from medsyn.methods.cost import SamplingCost, read_cost
from medsyn.methods.unconditional import Unconditional
from medsyn.volume import Volume, read_volume, write_volume

SIZE = (16, 16, 16)
FIELD = [288.0, 320.0, 320.0]
NOISE = '''
"""A generator of noise that takes no text."""
import numpy as np
from medsyn.config import MethodConfig
from medsyn.methods.base import METHODS, Kind, Method, Network, NetworkStage

class NoiseConfig(MethodConfig):
    std_hu: float = 50.0

    @property
    def takes_text(self):
        return False

class MeanStage(NetworkStage):
    std_hu: float

class NoiseMethod(Method):
    channels = ("image",)
    takes_text = False

    def __init__(self, stage, mean_hu):
        self.label, self.settings, self.mean_hu = stage.name, stage, mean_hu

    def sample(self, prompts):
        for prompt in prompts:
            noise = np.random.default_rng(prompt.seed).normal(self.mean_hu, self.settings.entry.std_hu, self.grid.size)
            yield {"volume": self.on_grid(noise.astype(np.int16))}

class Noise(Kind):
    entry = NoiseConfig

    def networks(self, config, name):
        return {"mean": Network(MeanStage(kind="noise", std_hu=config.methods[name].std_hu))}

    def train(self, training):
        for path in (training.out, *(training.out.with_name("mean_" + end) for end in ("metrics.csv", "preview.png"))):
            path.write_text("-600")

    def open(self, config, files, work):
        (weights,) = files
        return NoiseMethod(self.load(config), float(weights.read_text()))

NOISE = Noise()
'''


def configuration(path: Path, methods: dict[str, Any], **changes: Any) -> Path:
    """The test configuration on a grid of SIZE, with more methods."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8")) | changes
    values["methods"] |= methods
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def settings(folder: Path, name: str, entry: dict[str, Any], **changes: Any) -> Path:
    """The file method_<name>.json that the verb `config` writes, on a grid of SIZE."""
    config = configuration(folder / "c.yaml", {name: {"label": "Theirs", **entry}}, **changes)
    out = folder / "settings" / f"method_{name}.json"
    command = ["config", str(config), "--stage", f"method_{name}", "--out", str(out), "--force", "--quiet"]
    assert main(command) == 0
    values = json.loads(out.read_text(encoding="utf-8"))
    values["preprocess"] |= {"size": SIZE, "field_of_view_mm": FIELD}
    out.write_text(json.dumps(values), encoding="utf-8")
    return out


def prompts(path: Path, ids: list[str]) -> Path:
    """A table of prompts with these ids."""
    rows = [{"sample_id": name, "text": f"Text of {name}.", "seed": k} for k, name in enumerate(ids)]
    write_csv(path, rows, ("sample_id", "text", "seed"))
    return path


def block(seed: int) -> Volume:
    """(20, 20, 20) noise in HU with a voxel of bone, on a grid of its own; no chest."""
    hu = np.random.default_rng(seed).normal(-800, 60, size=(20, 20, 20)).astype(np.int16)
    hu[0, 0, 0] = 700
    return Volume(hu, (14.0, 15.0, 15.0), (10.0, -30.0, 5.0))


def sample(*words: object) -> int:
    return main(["sample", *(str(word) for word in words), "--quiet"])


def index(out: Path) -> dict[str, str]:
    """sample_id -> "ok", or the reason why it is rejected."""
    return {row["sample_id"]: row["reason"] or row["status"] for row in read_csv(out / "index.csv")}


# --- a stranger's kind ---


def run_planned(words: list[str], folder: Path) -> None:
    """Run a command of the package that a dry run printed, without its redirection."""
    end = next(k for k, word in enumerate(words) if word.startswith("2>"))
    command = [sys.executable, *words[words.index("-m") : end]]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def offer_as_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The module of the page, which trains nothing; the configuration's key that names it."""
    (folder / "noise.py").write_text(example("noise.py"))
    return {"plugins": ["a stranger/noise.py"]}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A package with an entry point, whose kind trains a network."""
    (folder / "noise_of_a_stranger.py").write_text(NOISE)
    info = folder / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medsyn.methods]\nnoise = noise_of_a_stranger:NOISE\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    return {}


@pytest.mark.parametrize("offer", [offer_as_plugin, install])
def test_a_strangers_method_is_one_module_and_one_entry(offer, tmp_path, monkeypatch):
    """Through the command line and the workflow, in processes of their own as users have them."""
    folder = tmp_path / "a stranger"
    folder.mkdir()
    changes = offer(folder, monkeypatch)
    config = configuration(tmp_path / "c.yaml", {"noise": {"kind": "noise", "label": "Noise", "std_hu": 20}}, **changes)
    run = run_snakemake("-n", "-p", "results/test/eval/table1.csv", directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    for made in ("samples/noise/reports/0", "measures/noise/reports/0.csv", "features/noise/reports/0.npz"):
        assert f"results/test/{made}" in run.stdout
    planned = [
        words for words in commands(run.stdout) if any("noise" in word.replace("denoiser", "") for word in words)
    ]
    train = [words for words in planned if "train" in words]
    (chosen,) = (words for words in planned if "sample" in words)
    assert len(train) == (offer is install) and not any("--embeddings" in words for words in train)
    stages = [f"results/test/config/{name}_noise.json" for name in ("method", *(["mean"] if train else []))]
    run = run_snakemake(*stages, directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    prompts(tmp_path / "results/test/prompts/reports.csv", ["report_00000", "report_00001"])
    for words in (*train, chosen):
        run_planned(words, tmp_path)
    out = tmp_path / "results/test/samples/noise/reports/0"
    assert index(out) == {"report_00000": "ok", "report_00001": "ok"}
    volume = read_volume(out / "report_00001/volume.nii.gz")
    assert volume.array.shape == (64, 64, 64)
    assert -605 < volume.array.mean() < -595 and 18 < volume.array.std() < 22
    record = json.loads((out / "report_00001/provenance.json").read_text(encoding="utf-8"))
    assert record["label"] == "noise" and record["seed"] == 1 and record["text"] is None
    cost = read_cost(out)
    assert cost.num_volumes == 2 and 0 < cost.seconds_per_volume < 5 and "thread" in cost.device
    assert cost.num_parameters is None, "the kind does not say it"


def test_a_method_without_text_cannot_be_asked_for_pairs(tmp_path):
    folder = tmp_path / "volumes"
    write_volume(folder / "a.nii.gz", block(0))
    config = configuration(tmp_path / "c.yaml", {"gan": {"kind": "external", "label": "GAN", "folder": "volumes"}})
    run = run_snakemake("-n", "results/test/samples/gan/pairs/0", directory=tmp_path, config=config)
    assert run.returncode != 0
    assert "methods.gan: takes no text and cannot answer the prompts 'pairs', expected 'reports'" in run.stdout
    run = run_snakemake("-n", "-p", "results/test/samples/gan/reports/0", directory=tmp_path, config=config)
    assert run.returncode == 0, run.stderr
    assert set(planned_jobs(run.stdout)) >= {"sample", "write_prompts"}
    assert "train_network" not in planned_jobs(run.stdout)


def test_a_method_without_text_counts_the_parameters_of_the_networks_that_it_holds():
    class Two(Unconditional):
        def __init__(self) -> None:
            self.first, self.second, self.label = nn.Linear(3, 2), nn.Linear(2, 1, bias=False), "two"

        def cube(self, seed: int) -> Tensor:
            raise NotImplementedError

    assert Two().num_parameters == 8 + 2


# --- a folder ---


def test_a_folder_named_by_prompts_answers_them(tmp_path):
    folder = tmp_path / "their volumes"
    write_volume(folder / "report_00001.nii.gz", block(1))
    write_volume(folder / "report_00000.nii.gz", block(0))
    config = settings(tmp_path, "theirs", {"kind": "external", "folder": str(folder)})
    table = prompts(tmp_path / "p.csv", ["report_00000", "report_00001", "report_00002"])
    out = tmp_path / "my out/0"
    assert sample("--config", config, "--files", folder, "--prompts", table, "--out", out) == 0
    assert index(out) == {
        "report_00000": "ok",
        "report_00001": "ok",
        "report_00002": f"{folder}: no report_00002.nii.gz or report_00002/volume.nii.gz",
    }
    volume = read_volume(out / "report_00001/volume.nii.gz")
    assert volume.array.shape == SIZE and volume.array.dtype == np.int16
    assert volume.spacing_mm == pytest.approx((18.0, 20.0, 20.0))
    record = json.loads((out / "report_00001/provenance.json").read_text(encoding="utf-8"))
    assert record["text"] == "Text of report_00001." and len(record["source"]["sha256"]) == 64
    assert record["source"]["file"] == "report_00001.nii.gz"
    assert read_cost(out) == SamplingCost(num_volumes=2), "the time of reading a folder is not that of its system"


def test_any_other_folder_answers_in_natural_order_and_each_file_once(tmp_path):
    folder = tmp_path / "gan"
    for number in (10, 2, 1):
        write_volume(folder / f"v{number}.nii.gz", block(number))
    config = settings(tmp_path, "gan", {"kind": "external", "folder": str(folder)})
    table = prompts(tmp_path / "p.csv", [f"report_{k:05d}" for k in range(4)])
    sources: dict[str, str] = {}
    for shard in (0, 1):
        out = tmp_path / f"{shard}"
        assert sample("--config", config, "--prompts", table, "--shard", f"{shard}/2", "--out", out) == 0
        for path in out.glob("*/provenance.json"):
            record = json.loads(path.read_text(encoding="utf-8"))
            assert record["text"] is None
            sources[path.parent.name] = record["source"]["file"]
    assert sources == {"report_00000": "v1.nii.gz", "report_00001": "v2.nii.gz", "report_00002": "v10.nii.gz"}
    assert index(tmp_path / "1")["report_00003"].startswith(f"{folder}: holds 3 volumes, expected at least 4, one per")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def without_geometry(path: Path) -> None:
    """As libraries write an array: an identity matrix, 1 mm, no origin."""
    write_volume(path, Volume(block(3).array, (1.0, 1.0, 1.0), direction=tuple(np.diag([-1.0, -1.0, 1.0]).ravel())))


def scaled_for_a_network(path: Path) -> None:
    write_volume(path, block(1).with_array((block(1).array / 1024).clip(-1, 1).astype(np.float32)))


def of_no_spacing(path: Path) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[76:108] = np.array([1, 0, 0, 0, 0, 0, 0, 0], "<f4").tobytes()  # pixdim
    data[252:256] = b"\0" * 4  # qform and sform codes
    path.write_bytes(gzip.compress(bytes(data)))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, "cannot be read"),
        (without_geometry, "carries no spacing_mm and orientation"),
        (of_no_spacing, "carries no spacing"),
        (scaled_for_a_network, "HU"),
    ],
)
def test_a_bad_volume_costs_only_itself(tmp_path, damage: Callable[[Path], None], words: str):
    folder = tmp_path / "v"
    for k in range(3):
        write_volume(folder / f"report_0000{k}.nii.gz", block(k))
    damage(folder / "report_00001.nii.gz")
    config = settings(tmp_path, "theirs", {"kind": "external", "folder": str(folder)})
    table = prompts(tmp_path / "p.csv", [f"report_0000{k}" for k in range(3)])
    out = tmp_path / "out"
    assert sample("--config", config, "--prompts", table, "--out", out) == 0
    said = index(out)
    assert said["report_00000"] == said["report_00002"] == "ok"
    assert words in said["report_00001"] and "report_00001.nii.gz" in said["report_00001"]
    assert sorted(path.name for path in out.iterdir()) == ["cost.json", "index.csv", "report_00000", "report_00002"]


def test_geometry_that_the_entry_states_is_used(tmp_path):
    folder = tmp_path / "v"
    array = np.full((16, 16, 16), -1000, np.int16)
    array[:8] = 40  # the first half along z
    for name, geometry in (("a", ("spacing_mm", "orientation")), ("b", ("spacing_mm",))):
        image = sitk.GetImageFromArray(array)
        (folder / name).mkdir(parents=True)
        sitk.WriteImage(image, str(folder / name / "report_00000.nii.gz"))
        stated = {"spacing_mm": [18.0, 20.0, 20.0], "orientation": "LPI"}
        entry = {"kind": "external", "folder": str(folder / name), **{key: stated[key] for key in geometry}}
        config = settings(tmp_path, "theirs", entry)
        out = tmp_path / f"out_{name}"
        table = prompts(tmp_path / "p.csv", ["report_00000"])
        assert sample("--config", config, "--prompts", table, "--out", out) == 0
    volume = read_volume(tmp_path / "out_a/report_00000/volume.nii.gz").array  # z from inferior to superior
    assert (volume[:8] == -1000).mean() > 0.9 and (volume[8:] == 40).mean() > 0.9
    assert index(tmp_path / "out_b")["report_00000"].endswith(
        "carries no orientation, expected one; give orientation in methods.theirs"
    )


def test_too_many_bad_volumes_stop_the_shard(tmp_path, capsys):
    folder = tmp_path / "v"
    for k in range(4):
        write_volume(folder / f"report_0000{k}.nii.gz", block(k))
    for k in (0, 1):
        truncated(folder / f"report_0000{k}.nii.gz")
    config = settings(tmp_path, "theirs", {"kind": "external", "folder": str(folder)})
    table = prompts(tmp_path / "p.csv", [f"report_0000{k}" for k in range(4)])
    assert sample("--config", config, "--prompts", table, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 of 4 volumes of 'theirs' are rejected, at most 10% may be; first: report_00000: " in error
    assert not (tmp_path / "out").exists()


def test_a_stopped_folder_goes_on_where_it_was(tmp_path, monkeypatch):
    folder = tmp_path / "v"
    for k in range(3):
        write_volume(folder / f"report_0000{k}.nii.gz", block(k))
    config = settings(tmp_path, "theirs", {"kind": "external", "folder": str(folder)})
    table = prompts(tmp_path / "p.csv", [f"report_0000{k}" for k in range(3)])
    words = ("--config", config, "--prompts", table, "--state", tmp_path / "state", "--out", tmp_path / "out")
    read: list[str] = []
    answer = external._External._answer

    def stopped(method: Any, prompt: Any, path: Path) -> Any:
        read.append(path.name)
        if len(read) == 2:
            raise SystemExit(143)
        return answer(method, prompt, path)

    monkeypatch.setattr(external._External, "_answer", stopped)
    with pytest.raises(SystemExit):
        sample(*words)
    assert sample(*words) == 0
    assert read == [f"report_0000{k}.nii.gz" for k in (0, 1, 1, 2)]
    assert set(index(tmp_path / "out").values()) == {"ok"} and not (tmp_path / "state").exists()


# --- a command ---

GENERATOR = """
import csv, shutil, sys
from pathlib import Path
table, out, source, *words = sys.argv[1:]
assert list(Path(out).iterdir()) == []
rows = list(csv.DictReader(open(table, newline="")))
print("sampling", len(rows), rows[0]["text"], rows[0]["seed"])
for row in rows:
    if row["sample_id"] != "report_00001":
        shutil.copy(source, Path(out) / (row["sample_id"] + ".nii.gz"))
sys.exit(int(words[0]) if words else 0)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A generator of another group, in a folder with a space."""
    folder = tmp_path / "their system"
    folder.mkdir()
    (folder / "generate.py").write_text(GENERATOR)
    write_volume(folder / "v.nii.gz", block(0))
    return [sys.executable, str(folder / "generate.py"), "{prompts}", "{out}", str(folder / "v.nii.gz")]


@pytest.mark.parametrize("as_string", [False, True])
def test_a_command_answers_the_prompts_of_a_shard(tmp_path, command, as_string, capsys):
    written = " ".join(word if "{" in word else shlex.quote(word) for word in command) if as_string else command
    config = settings(tmp_path, "theirs", {"kind": "external", "command": written})
    table = prompts(tmp_path / "p.csv", [f"report_0000{k}" for k in range(6)])
    out = tmp_path / "my out"
    assert sample("--config", config, "--prompts", table, "--shard", "1/2", "--out", out) == 0
    assert index(out) == {
        "report_00001": "the command wrote no report_00001.nii.gz or report_00001/volume.nii.gz",
        "report_00003": "ok",
        "report_00005": "ok",
    }
    assert "sampling 3 Text of report_00001. 1" in capsys.readouterr().err
    record = json.loads((out / "report_00003/provenance.json").read_text(encoding="utf-8"))
    assert record["config"]["entry"]["command"] == command and record["text"] == "Text of report_00003."
    assert [path.name for path in tmp_path.iterdir() if "work" in path.name] == []


def test_a_command_that_fails_is_named_with_what_is_missing(tmp_path, command, capsys):
    config = settings(tmp_path, "theirs", {"kind": "external", "command": [*command, "3"]})
    table = prompts(tmp_path / "p.csv", ["report_00000", "report_00001"])
    assert sample("--config", config, "--prompts", table, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "methods.theirs.command: " in error and "ended with exit status 3, expected 0" in error
    assert "no volume of 1 of 2 prompts: report_00001" in error
    assert not (tmp_path / "out").exists()


def test_a_command_is_run_without_a_shell(tmp_path, command):
    words = [*command[:2], "{prompts}", "{out}", command[-1], "0; touch pwned", "$(touch pwned)"]
    (tmp_path / "their system/generate.py").write_text(GENERATOR.replace("int(words[0])", "0"))
    config = settings(tmp_path, "theirs", {"kind": "external", "command": words})
    table = prompts(tmp_path / "p.csv", ["report_00000"])
    assert sample("--config", config, "--prompts", table, "--out", tmp_path / "out") == 0
    assert not list(tmp_path.rglob("pwned"))


def test_a_command_that_cannot_be_started(tmp_path, capsys):
    config = settings(tmp_path, "theirs", {"kind": "external", "command": "/absent/program {prompts} {out}"})
    table = prompts(tmp_path / "p.csv", ["report_00000"])
    assert sample("--config", config, "--prompts", table, "--out", tmp_path / "out") == 2
    assert "methods.theirs.command: /absent/program cannot be started (No such file" in capsys.readouterr().err


def test_a_command_that_wrote_too_little_is_run_again_once_it_is_repaired(tmp_path, command, capsys):
    program = tmp_path / "their system/generate.py"
    program.write_text(GENERATOR.replace('!= "report_00001"', '== "report_00003"'))
    config = settings(tmp_path, "theirs", {"kind": "external", "command": command})
    table = prompts(tmp_path / "p.csv", [f"report_0000{k}" for k in range(4)])
    words = ("--config", config, "--prompts", table, "--out", tmp_path / "out")
    assert sample(*words) == 2
    assert "3 of 4 volumes of 'theirs' are rejected" in capsys.readouterr().err
    program.write_text(GENERATOR.replace('!= "report_00001"', '!= ""'))
    assert sample(*words) == 0
    assert set(index(tmp_path / "out").values()) == {"ok"}


def test_a_command_is_run_once_per_guidance_scale(tmp_path, command, capsys):
    config = settings(tmp_path, "theirs", {"kind": "external", "command": command})
    rows = [
        {"sample_id": f"s{k}", "text": f"Text {k}.", "seed": k, "guidance_scale": scale}
        for k, scale in enumerate(("", "2", ""))
    ]
    write_csv(tmp_path / "p.csv", rows, list(rows[0]))
    assert sample("--config", config, "--prompts", tmp_path / "p.csv", "--out", tmp_path / "out") == 0
    assert index(tmp_path / "out") == {f"s{k}": "ok" for k in range(3)}
    said = capsys.readouterr().err
    assert "sampling 2 Text 0. 0" in said
    assert "sampling 1 Text 1. 1" in said


# --- the entry ---


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "methods.x: neither of folder and command is given, expected one of them"),
        ({"folder": "v", "command": "a {prompts} {out}"}, "methods.x: both of folder and command is given"),
        ({"folder": "absent"}, "methods.x.folder: absent: no such folder of volumes"),
        ({"command": "generate {out}"}, "'generate {out}' does not contain {prompts}"),
        ({"command": "generate '{out}"}, "cannot be split into words"),
        ({"command": "a {prompts} {out}", "spacing_mm": [1, 1]}, "methods.x.spacing_mm"),
        ({"command": "a {prompts} {out}", "orientation": "XYZ"}, "methods.x.orientation"),
        ({"command": "a {prompts} {out}", "folders": "x"}, "methods.x.folders: unknown key"),
        ({"kind": "exernal"}, "'exernal' is not a known kind of method; expected one of medsyn, distilled, external"),
    ],
)
def test_a_wrong_entry_is_one_line(tmp_path, monkeypatch, entry, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v").mkdir()
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["methods"]["x"] = {"kind": "external", "label": "X", **entry}
    with pytest.raises(InputError) as error:
        validate(Config, values, "c.yaml")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"kind": "absent"},
            "kind: 'absent' is not a known kind of method; expected one of medsyn, distilled, external",
        ),
        ({"kind": "external"}, "entry is missing, expected the settings of a method; run `medsyn config`"),
        ({"kind": "external", "entry": {"label": "X", "command": "a {prompts} {out}"}}, "name: Field required"),
        ({}, "0 files of the model are given, expected one: its run.json (--files)"),
    ],
)
def test_settings_that_are_not_of_a_method_are_one_line(tmp_path, capsys, content, words):
    config = tmp_path / "method_x.json"
    config.write_text(json.dumps(content), encoding="utf-8")
    table = prompts(tmp_path / "p.csv", ["report_00000"])
    assert sample("--config", config, "--prompts", table, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{config}: {words}" in error and error.count("\n") == 1


def test_another_label_samples_nothing_again(tmp_path):
    entry = {"kind": "external", "command": "a {prompts} {out}"}
    texts = [settings(tmp_path, "x", entry | {"label": label}).read_text() for label in ("A", "B")]
    assert texts[0] == texts[1]
    assert load_config(tmp_path / "c.yaml").methods["x"].label == "B"


def test_natural_order():
    assert sorted(["v10", "v9", "a", "v9b", "10", "2"], key=external.natural_key) == [
        "2",
        "10",
        "a",
        "v9",
        "v9b",
        "v10",
    ]


class NamedAsText(external.External):
    """A kind whose settings have the name of a text encoder's."""

    def sampling(self, config: Config, name: str) -> tuple[str, Section]:
        return "text_biomedical", config.preprocess


def test_settings_of_two_stages_never_share_a_file(monkeypatch):
    monkeypatch.setitem(METHODS._things, "external", NamedAsText())
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["methods"]["theirs"] = {"kind": "external", "label": "Theirs", "command": "a {prompts} {out}"}
    with pytest.raises(
        InputError, match=r"methods\.theirs: its settings text_biomedical\.json have the name of another"
    ):
        stage_configs(validate(Config, values, "c.yaml"))
