"""The command line as a whole: every verb explains itself, bad input is one line and status 2."""

import pytest

from medsyn.cli import build_parser, main

VERBS = sorted(next(action for action in build_parser()._actions if action.dest == "verb").choices)


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)
    assert {"inspect", "preprocess", "segment", "measure", "label", "phantom", "generate", "evaluate"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert f"example:\n  medsyn {verb} " in capsys.readouterr().out
