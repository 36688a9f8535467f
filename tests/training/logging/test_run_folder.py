"""The run folder: lines exact, resumes clean, nothing half-written."""

import json
import math
import pathlib
import re
import shutil
import struct
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from distil_jax import types
from distil_jax.training.logging import (
  rollout_pages,
  run_folder,
  run_info,
  tables,
)

_KINDS = ("jsonl", "md")  # of the files with the samples of a step


def start(directory, resume_step=None, **settings):
  folder = run_folder.RunFolder(directory, **{"tensorboard": False, **settings})
  folder.start(
    "name: test\n", resume_step, device_kind="Toaster", num_devices=3
  )
  return folder


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def events(directory):
  """(tag, step, value) of all TensorBoard files, and the purge steps."""
  scalars, purges = [], []
  for path in sorted(directory.glob("events*")):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      if event.HasField("session_log"):
        purges.append(event.step)
      for value in event.summary.value:
        scalars.append((value.tag, event.step, value.simple_value))
  return scalars, purges


def test_start_writes_config_and_environment(tmp_path):
  start(tmp_path / "runs" / "a")
  folder = tmp_path / "runs" / "a"
  assert (folder / "config.yaml").read_text() == "name: test\n"
  environment = json.loads((folder / "environment.json").read_text())
  assert environment["devices"] == {"kind": "Toaster", "count": 3}
  assert environment["packages"]["numpy"] == np.__version__
  assert set(environment["packages"]) >= {"jax", "jaxlib", "orbax-checkpoint"}
  assert "git" in environment


def test_the_run_directory_is_a_file(tmp_path):
  (tmp_path / "run").write_text("mine")
  with pytest.raises(tables.ReportError, match=r"run is a file; set train"):
    start(tmp_path / "run")
  assert (tmp_path / "run").read_text() == "mine"


def test_only_the_writer_writes(tmp_path):
  folder = start(tmp_path / "run", is_writer=False, tensorboard=True)
  folder.metrics(1, {"reward": 1.0})
  folder.evaluation(1, {"avg@4": 1.0})
  folder.rollouts(1, [])
  folder.summary({"steps": 1})
  folder.close()
  assert list(tmp_path.iterdir()) == []


def test_metrics_keep_every_bit_and_every_type(tmp_path):
  folder = start(tmp_path)
  third = 1 / 3
  folder.metrics(
    np.int64(7),
    {
      "python": third,
      "numpy": np.float64(third),
      "jax": jnp.float32(third),
      "array": np.array(third),
      "integer": jnp.int32(5),
    },
  )
  (record,) = lines(tmp_path / "metrics.jsonl")
  assert record == {
    "step": 7,
    "python": third,
    "numpy": third,
    "jax": float(np.float32(third)),
    "array": third,
    "integer": 5,
  }
  assert isinstance(record["integer"], int)


def test_numbers_that_json_does_not_have_become_null(tmp_path):
  folder = start(tmp_path)
  folder.metrics(1, {"a": math.nan, "b": jnp.inf, "c": -np.inf, "d": 1.0})
  text = (tmp_path / "metrics.jsonl").read_text()
  assert text == '{"step": 1, "a": null, "b": null, "c": null, "d": 1.0}\n'


def test_a_value_that_is_no_number_is_named(tmp_path):
  folder = start(tmp_path)
  with pytest.raises(tables.ReportError, match="reward must be one number"):
    folder.metrics(1, {"reward": np.zeros(2)})
  assert not (tmp_path / "metrics.jsonl").exists()


def test_resumed_metrics_equal_those_of_an_uninterrupted_run(tmp_path):
  values = {step: {"reward": math.sin(step)} for step in range(1, 7)}
  whole = start(tmp_path / "whole")
  for step in values:
    whole.metrics(step, values[step])
  killed = start(tmp_path / "killed")
  for step in (1, 2, 3, 4, 5):
    killed.metrics(step, values[step])
  path = tmp_path / "killed" / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 2, "rew')  # cut off in a line
  resumed = start(tmp_path / "killed", resume_step=3)
  assert [record["step"] for record in lines(path)] == [1, 2, 3]
  for step in (4, 5, 6):
    resumed.metrics(step, values[step])
  expected = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
  assert path.read_bytes() == expected


def test_a_start_from_the_beginning_leaves_nothing_of_an_earlier_run(tmp_path):
  folder = start(tmp_path)
  folder.metrics(1, {"reward": 0.0})
  folder.evaluation(0, {"avg@4": 0.0})
  folder.rollouts(1, [])
  folder.summary({"steps": 1})
  start(tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == ""
  assert (tmp_path / "evaluations.jsonl").read_text() == ""
  assert list((tmp_path / "rollouts").iterdir()) == []
  assert not (tmp_path / "summary.json").exists()


def test_resume_drops_later_pages_and_evaluations(tmp_path):
  folder = start(tmp_path)
  for step in (0, 10, 20):
    folder.evaluation(step, {"avg@4": step / 20})
    folder.rollouts(step, [])
  (tmp_path / "rollouts" / "step_notes.md").write_text("mine")
  resumed = start(tmp_path, resume_step=10)
  assert [line["step"] for line in resumed.evaluations()] == [0, 10]
  pages = sorted(page.name for page in (tmp_path / "rollouts").iterdir())
  kept = [f"step_0000{step}.{kind}" for step in ("00", "10") for kind in _KINDS]
  assert pages == [*kept, "step_notes.md"]


def test_a_broken_line_in_the_middle_is_an_error_and_stays(tmp_path):
  text = '{"step": 1}\n{"step": \n{"step": 3}\n'
  (tmp_path / "metrics.jsonl").write_text(text)
  with pytest.raises(tables.ReportError, match=r"metrics\.jsonl:2 is not"):
    start(tmp_path, resume_step=3)
  assert (tmp_path / "metrics.jsonl").read_text() == text


def test_evaluating_a_step_again_replaces_its_line(tmp_path):
  folder = start(tmp_path)
  folder.evaluation(0, {"avg@4": 0.25})
  folder.evaluation(5, {"avg@4": 0.5})
  folder.evaluation(5, {"avg@4": 0.75})
  assert folder.evaluations() == [
    {"step": 0, "avg@4": 0.25},
    {"step": 5, "avg@4": 0.75},
  ]


def test_summary_is_plain_json(tmp_path):
  folder = start(tmp_path)
  folder.summary(
    {"before": {"avg@4": jnp.float32(0.25)}, "after": None, "steps": 3}
  )
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary == {"before": {"avg@4": 0.25}, "after": None, "steps": 3}
  assert list(tmp_path.glob(".*")) == []  # no temporary file stays


def test_tensorboard_has_the_same_numbers_and_purges_on_resume(tmp_path):
  folder = start(tmp_path, tensorboard=True)
  folder.metrics(1, {"reward": 0.5, "cost": math.nan})
  folder.evaluation(1, {"avg@4": 0.25})
  folder.close()
  folder.close()
  resumed = start(tmp_path, resume_step=1, tensorboard=True)
  resumed.metrics(2, {"time/step_seconds": 2})
  resumed.close()
  scalars, purges = events(tmp_path / "tensorboard")
  assert sorted(scalars) == [
    ("evaluation/avg_at_4", 1, 0.25),
    ("reward", 1, 0.5),
    ("time/step_seconds", 2, 2.0),
  ]
  assert sorted(purges) == [0, 2]


SAMPLE = rollout_pages.Sample(
  problem=types.Problem(
    index=17,
    messages=(
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "Compute 1 + 1."},
    ),
    answer="2",
  ),
  completion="```text\n1 + 1 = 3\n```\n````\n## Not a heading",
  num_tokens=23,
  stop_reason=np.int32(1),
  verdict=types.Verdict(0.0, "It is 2.", types.Status.WRONG),
  teacher_prompt="Compute 1 + 1.\n\nIt is 2.",
)


def fences(page):
  """Fenced texts, read as CommonMark does."""
  texts, fence = [], None
  for line in page.split("\n"):
    opening = re.fullmatch(r"(`{3,})text", line)
    if fence is None and opening:
      fence, text = opening[1], []
    elif fence and re.fullmatch(rf"{fence}`*\s*", line):
      texts.append("\n".join(text))
      fence = None
    elif fence:
      text.append(line)
  assert fence is None
  return texts


def test_a_page_of_rollouts(tmp_path):
  start(tmp_path).rollouts(10, [SAMPLE])
  page = (tmp_path / "rollouts" / "step_000010.md").read_text()
  for part in (
    "# Rollouts of step 10",
    "- problem: 17",
    "- reward: 0\n",
    "- status: wrong",
    "- stop reason: eos",
    "- completion length: 23 tokens",
    "### Prompt: system",
  ):
    assert part in page
  assert fences(page) == [
    "Be brief.",
    "Compute 1 + 1.",
    SAMPLE.completion,
    "It is 2.",
    SAMPLE.teacher_prompt,
  ]


def test_a_page_survives_what_models_and_sandboxes_emit(tmp_path):
  sample = rollout_pages.Sample(
    problem=SAMPLE.problem,
    completion="",
    num_tokens=0,
    stop_reason=types.StopReason.LENGTH,
    verdict=types.Verdict(1.0, "bytes \udcff", types.Status.CORRECT),
  )
  start(tmp_path).rollouts(1, [sample])
  page = (tmp_path / "rollouts" / "step_000001.md").read_text(encoding="utf-8")
  assert "### Completion\n\n(empty)" in page
  assert "bytes \\udcff" in page
  assert "no teacher signal" in page


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_source_revision(tmp_path):
  def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
      ["git", "-C", str(tmp_path), *identity, *arguments],
      check=True,
      capture_output=True,
      text=True,
    ).stdout.strip()

  package: pathlib.Path = tmp_path / "package"
  package.mkdir()
  (package / "__init__.py").write_text("")
  assert run_info.source_revision(package) is None  # no repository
  git("init")
  assert run_info.source_revision(package) is None  # not tracked
  git("add", ".")
  git("commit", "--no-gpg-sign", "-m", "first")
  commit = git("rev-parse", "HEAD")
  (tmp_path / "elsewhere.txt").write_text("outside the package")
  assert run_info.source_revision(package) == {
    "commit": commit,
    "dirty": False,
  }
  (package / "new.py").write_text("1")
  assert run_info.source_revision(package) == {
    "commit": commit,
    "dirty": True,
  }


def test_comparison_table():
  table = tables.comparison_table(
    {"step": 0, "avg@4": 0.312, "pass@4": 1.0, "completion_length": 45.23},
    {"step": 9, "avg@4": 0.589, "completion_length": np.float32(40)},
  )
  assert table.split("\n") == [
    "                    before   after        change",
    "avg@4               31.2 %  58.9 %  +27.7 points",
    "pass@4             100.0 %       -             -",
    "completion length     45.2    40.0          -5.2",
  ]
