"""Help with examples that can be run, and errors with cures."""

import pathlib
import shlex

import pytest

from distil_jax.cli import main

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = main.build_parser().command_names


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_parses(name, capsys):
  with pytest.raises(SystemExit) as ended:
    main.main([name, "--help"])
  assert ended.value.code == 0
  shown = capsys.readouterr().out
  example = shown[shown.index("example:") :].splitlines()[1].strip()
  program, *words = shlex.split(example)
  assert (program, words[0]) == ("distil-jax", name)
  assert main.parse_arguments(words)
  for word in words:
    assert not word.startswith("configs/") or (ROOT / word).is_file()


def test_settings_are_not_among_what_is_required(capsys):
  with pytest.raises(SystemExit):
    main.main(["train"])
  said = capsys.readouterr().err
  assert said.endswith("the following arguments are required: CONFIG\n")


def test_a_command_far_from_all_is_told_the_commands(capsys):
  with pytest.raises(SystemExit):
    main.main(["xyzzy"])
  said = capsys.readouterr().err
  assert "did you mean" not in said
  assert "the commands are init, check, train" in said
