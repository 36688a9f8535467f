"""Going on with settings that differ from those of the checkpoint."""

import json
import shutil

import jax.numpy as jnp
import pytest

from distil_jax import config
from distil_jax.cli import main
from distil_jax.training import (
  changed_settings,
  checkpoints,
  content,
  resume,
  run_checks,
)

LINEAR = {"schedule": "linear"}


def check(old, new):
  saved = config.parse(old).model_dump(mode="json")
  return run_checks.check_same_settings(saved, config.parse(new), 3)


@pytest.mark.parametrize(
  "new",
  [
    {"optimizer": {"micro_batch_size": 4}},
    {"model": {"remat": "none"}},
    {"objective": {"chunk_size": 8}},
    {"mesh": {"tensor": 2}},
    {"train": {"num_steps": 500}},
  ],
)
def test_what_changes_rounding_alone_may_differ(new):
  assert check({}, new) == {}


def test_what_changes_learning_needs_a_word():
  slower = {"optimizer": {"learning_rate": 1e-7}}
  with pytest.raises(config.ConfigError) as caught:
    check({}, slower)
  for text in (
    "--allow optimizer.learning_rate",
    "optimizer.learning_rate: 1e-05 in the checkpoint, 1e-07 now",
  ):
    assert text in str(caught.value)
  allowed = {"train": {"allow_changes": ["optimizer.learning_rate"]}}
  assert check({}, slower | allowed) == {
    "optimizer.learning_rate": (1e-5, 1e-7)
  }


@pytest.mark.parametrize(
  ("began", "now", "decay"),
  [
    # From before the setting, with the default of then, and with that of now.
    ({}, {}, "all"),
    ({"decay": "all"}, {}, "all"),
    ({"decay": "matrices"}, {}, "matrices"),
    ({"kind": "lion"}, {"kind": "lion"}, "matrices"),
    ({"decay": "all"}, {"decay": "matrices"}, "matrices"),
  ],
)
def test_a_run_goes_on_with_the_decay_that_it_began_with(
  tmp_path, began, now, decay
):
  with checkpoints.Checkpoints(tmp_path / "checkpoints", keep=1) as saved:
    notes = {"config": {"optimizer": began}}
    saved.save(1, {"x": jnp.zeros(1)}, notes)
  settings = config.parse(
    {"optimizer": now, "train": {"run_directory": str(tmp_path)}}
  )
  found = resume.with_settings_of_run(settings)
  assert found.optimizer.decay == decay
  unchanged = found.model_copy(update={"optimizer": settings.optimizer})
  assert unchanged == settings


def test_another_decay_needs_a_word():
  old, new = {"decay": "all"}, {"optimizer": {"decay": "matrices"}}
  with pytest.raises(config.ConfigError, match=r"--allow optimizer\.decay"):
    check({"optimizer": old}, new)
  # A checkpoint from before the setting says nothing of it.
  with pytest.raises(config.ConfigError, match=r"--allow optimizer\.decay"):
    run_checks.check_same_settings({}, config.parse(new), 3)


def test_paths_are_compared_by_what_they_lead_to(tmp_path):
  rows = tmp_path / "rows.jsonl"
  rows.write_text('{"prompt": "a", "answer": "b"}\n')
  (tmp_path / "copies").mkdir()
  copied = tmp_path / "copies/other.jsonl"
  shutil.copy(rows, copied)

  def settings(path, **train):
    return config.parse(
      {
        "data": {"train": str(path), "evaluation": str(rows)},
        "environment": {"kind": "math"},
        "model": {"directory": "embedded:calculator"},
        "train": train,
      }
    )

  old = settings(rows)
  saved, noted = old.model_dump(mode="json"), content.digests(old)
  assert set(noted) == {"data.train", "data.evaluation", "model.directory"}

  def check_with(new, before):
    pair = before, content.digests(new)
    return run_checks.check_same_settings(saved, new, 3, pair)

  for path in (copied, tmp_path / "copies/../rows.jsonl"):
    new = settings(path)
    assert check_with(new, noted) == {}
    # An older checkpoint knows the path alone.
    with pytest.raises(config.ConfigError, match=r"--allow data\.train"):
      run_checks.check_same_settings(saved, new, 3)
  other = tmp_path / "other.jsonl"
  other.write_text(rows.read_text() * 2)
  for path, text in ((other, "other.jsonl' now"), (rows, "'content ")):
    changed = noted if path == other else noted | {"data.train": "0123"}
    with pytest.raises(config.ConfigError, match=text):
      check_with(settings(path), changed)
    allowed = settings(path, allow_changes=["data.train"])
    found = check_with(allowed, changed)
    assert set(found) == {"data.train"}


def test_the_end_of_a_schedule_may_move_on_purpose():
  longer = {"num_steps": 500}
  with pytest.raises(config.ConfigError, match=r"--allow train\.num_steps"):
    check({"optimizer": LINEAR}, {"optimizer": LINEAR, "train": longer})
  longer["allow_changes"] = ["train.num_steps"]
  check({"optimizer": LINEAR}, {"optimizer": LINEAR, "train": longer})


@pytest.mark.parametrize(
  ("key", "new"),
  [
    ("optimizer.beta1", {"optimizer": {"beta1": 0.8}}),
    # Its state is in the checkpoint, or is not.
    ("optimizer.max_gradient_norm", {"optimizer": {"max_gradient_norm": None}}),
    ("rollout.num_problems", {"rollout": {"num_problems": 32}}),
  ],
)
def test_what_the_checkpoint_depends_on_cannot_be_allowed(key, new):
  with pytest.raises(config.ConfigError, match="set another") as caught:
    check({}, new | {"train": {"allow_changes": [key]}})
  assert "--allow" not in str(caught.value)


def test_changes_are_noted_once(tmp_path):
  for _ in range(2):
    changed_settings.note(tmp_path, 3, {"a.b": (1, None)})
  changed_settings.note(tmp_path, 5, {"a.b": (None, 2)})
  lines = (tmp_path / "changes.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 3, "key": "a.b", "before": 1, "now": None},
    {"step": 5, "key": "a.b", "before": None, "now": 2},
  ]


def test_the_option_names_settings():
  given = ["train", "c.yaml", "--allow", "a.b", "c.d", "--allow", "e"]
  assert main.parse_arguments(given).allow == ["a.b", "c.d", "e"]
