"""A run folder that older code has written can still be used."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.commands import run
from tests.paths import GOLDEN

CONFIG = "run/config.yaml"


@pytest.fixture
def folder(tmp_path):
  """The old run, in the folder that its relative paths begin at."""
  shutil.copytree(GOLDEN / "old_run", tmp_path / "old_run")
  return tmp_path / "old_run"


def command(folder, *arguments):
  done = run(arguments, folder / "compiled", directory=folder)
  assert done.returncode == 0, done.stderr
  return done


def lines(path: pathlib.Path):
  made = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))}
    for line in made
  ]


def test_training_goes_on_as_the_old_code_did(folder):
  before = lines(folder / "run/metrics.jsonl")
  expected = json.loads((folder / "step_2.json").read_text())
  done = command(folder, "train", CONFIG, "train.num_steps=2")
  assert "going on from step 1" in done.stderr
  *earlier, last = lines(folder / "run/metrics.jsonl")
  assert earlier == before
  # The old code had no such metrics.
  assert 0 <= last.pop("update/padding") < 1
  assert 0 <= last.pop("frac_reward_zero_std") <= 1
  assert last.keys() == expected["metrics"].keys()
  # The old code computed padding that is cut off now, and without it sums are
  # rounded otherwise. So they are by another CPU, and a metric may be the small
  # difference of numbers of size 1, each of which float32 holds to 1e-7.
  for name, value in expected["metrics"].items():
    np.testing.assert_allclose(last[name], value, rtol=1e-4, atol=1e-6)
  evaluated = lines(folder / "run/evaluations.jsonl")
  assert [line["step"] for line in evaluated] == [0, 1, 2]


def test_the_old_run_is_evaluated_exported_and_asked(folder):
  done = command(folder, "evaluate", CONFIG)
  old = lines(folder / "run/evaluations.jsonl")[-1]
  assert "run, step 1\n" in done.stdout
  length = done.stdout.split("completion length")[1].split()[0]
  assert float(length) == pytest.approx(old["completion_length"], abs=0.06)

  command(folder, "export", CONFIG, "exported")
  assert (folder / "exported/model.safetensors").is_file()

  done = command(
    folder, "generate", CONFIG, "12 + 5 =", "--max-tokens=4", "--json"
  )
  assert "step 1 of run" in done.stderr
  assert json.loads(done.stdout)["num_tokens"] <= 4
