"""`dj.train`: what is checked before a run, and what its callback is told.

A whole run is in docs/reference/api.md, whose code the tests execute.
"""

import dataclasses
import json
import pathlib

import pytest

import distil_jax as dj
from distil_jax import config
from distil_jax.training import train, trainer


@dataclasses.dataclass(frozen=True)
class Echo:
  """Wants the text back."""

  loud: bool = True

  def problem(self, row, index=0):
    message = {"role": "user", "content": row["text"]}
    return dj.Problem(index, (message,), answer=row["text"])

  def judge(self, problem, completion):
    return dj.Verdict(1.0, "", dj.Status.CORRECT)


ROWS = [{"text": "a"}, {"text": "b"}]


@pytest.fixture
def built(monkeypatch):
  """Keeps what a run would have been built from, and builds nothing."""
  seen = {}

  class Built(Exception):
    pass

  def stop(self, config, environment=None):
    seen.update(config=config, environment=environment)
    raise Built

  monkeypatch.setattr(trainer.Trainer, "__init__", stop)

  def call(settings, **arguments):
    with pytest.raises(Built):
      dj.train(settings, **arguments)
    return seen

  return call


def test_a_run_records_its_environment_and_its_rows(built, tmp_path):
  settings = dj.Config(train=config.TrainConfig(run_directory=str(tmp_path)))
  seen = built(
    settings, environment=Echo(), train_rows=ROWS, evaluation_rows=ROWS[:1]
  )
  assert seen["environment"] == Echo()
  section = seen["config"].environment
  assert section.function == f"{__name__}:Echo"
  assert section.settings == {"loud": True}
  for split, rows in (("train", ROWS), ("evaluation", ROWS[:1])):
    path = getattr(seen["config"].data, split)
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
  # Its commands read the settings from the folder.
  written = seen["config"].model_dump(mode="json")
  assert config.parse(written) == seen["config"]


def test_a_config_alone_is_taken_as_it_is(built):
  settings = dj.Config()
  assert built(settings) == {"config": settings, "environment": None}


@pytest.mark.parametrize(
  ("sections", "arguments", "message"),
  [
    ({}, {"train_rows": ROWS}, "at least one row each"),
    ({}, {"train_rows": ROWS, "evaluation_rows": []}, "at least one row each"),
    (
      {"data": {"train": "a.jsonl"}},
      {"train_rows": ROWS, "evaluation_rows": ROWS},
      "names data and rows are given",
    ),
    (
      {"environment": {"kind": "guess_number"}},
      {"environment": Echo()},
      "names an environment and another is given",
    ),
  ],
)
def test_what_is_said_twice_or_by_half_is_refused(sections, arguments, message):
  with pytest.raises(config.ConfigError, match=message):
    train.train(dj.Config(**sections), **arguments)
