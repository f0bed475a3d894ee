"""YAML files of settings: a key that stands twice is refused."""

import pytest

from medsyn.cli import main
from medsyn.yaml_file import read_yaml


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("results_dir: a\nresults_dir: b\n", "key 'results_dir' stands twice, in lines 1 and 2"),
        ("low_res:\n  train: {num_steps: 1}\n  unet: {dim: 8}\n  train: {num_steps: 2}\n", "'train' stands twice"),
        ("low_res: {train: {num_steps: 1, num_steps: 2}}\n", "'num_steps' stands twice, in lines 1 and 1"),
        ('methods:\n  medsyn: {label: a}\n  "medsyn": {label: b}\n', "'medsyn' stands twice, in lines 2 and 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text, words, tmp_path, capsys):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    assert main(["config", str(path)]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert "twice.yaml" in message
    assert "\n" not in message


def test_a_key_beside_a_merged_mapping_overrides_it(tmp_path):
    text = "a: &first {x: 1, y: 2}\nb: &second\n  <<: *first\n  x: 3\nc:\n  <<: *second\n  y: 4\n"
    (tmp_path / "merge.yaml").write_text(text)
    merged = read_yaml(tmp_path / "merge.yaml")
    assert (merged["b"], merged["c"]) == ({"x": 3, "y": 2}, {"x": 3, "y": 4})
