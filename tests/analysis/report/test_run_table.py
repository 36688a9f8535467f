"""`runs`: a line for each run folder."""

import json
import shutil

import pytest

from distil_jax.analysis.report import run_table
from distil_jax.training import lock_owner, run_lock
from distil_jax.training.logging.tables import ReportError

_HEAD = ("run", "status", "step", "last", "held-out", "best")


def test_each_run_has_its_settings_step_accuracy_and_status(
  runs_folder, tmp_path
):
  folder = tmp_path / "runs"
  shutil.copytree(runs_folder, folder)
  (folder / "rate1e-05_seed1" / "metrics.jsonl").write_text("nonsense\n")
  with run_lock.held(folder / "rate3e-05_seed0"):
    text = run_table.table(folder)
  head, *lines = text.split("\n")
  assert head.split() == (
    ["run", "status", "step", "last", "held-out", "best", "settings"]
  )
  first, second, damaged = lines[0], lines[1], lines[-1]
  assert first.split()[:3] == ["rate1e-05_seed0", "finished", "12/12"]
  assert "learning_rate=1e-05, seed=0" in first
  assert second.split()[:2] == ["rate3e-05_seed0", "running"]
  assert lines[2].split()[1] == "stopped"
  assert damaged.split()[:2] == ["rate1e-05_seed1", "damaged"]
  assert "metrics.jsonl:1" in damaged


def test_a_lock_of_a_run_that_was_killed_counts_as_none(runs_folder, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(runs_folder / "rate3e-05_seed1", folder)
  with run_lock.held(folder):
    lock = json.loads((folder / run_lock.NAME).read_text())
  assert lock_owner.find(folder) is None
  lock["started"] = 1  # another process has its id now
  (folder / run_lock.NAME).write_text(json.dumps(lock))
  assert lock_owner.find(folder) is None
  assert "stopped" in run_table.table(folder)


def test_a_folder_without_runs_says_what_makes_one(tmp_path):
  with pytest.raises(ReportError, match="distil-jax train CONFIG makes one"):
    run_table.table(tmp_path)
