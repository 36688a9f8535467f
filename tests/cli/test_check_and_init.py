"""What `init` writes can be checked and used, and `check` finds faults."""

import random

import numpy as np
import pytest

from distil_jax import config
from distil_jax.analysis import run_check
from distil_jax.cli import init, main
from distil_jax.cli.starter.task import Ledger
from distil_jax.envs import contract
from distil_jax.types import Status


@pytest.fixture
def started(tmp_path, monkeypatch, capsys):
  """Makes a starter in the current directory; returns what was printed."""
  monkeypatch.chdir(tmp_path)
  # A folder imported by an earlier test has another place.
  name = f"my_task_{random.randrange(10**9)}"
  assert main.main(["init", name]) == 0
  return name, capsys.readouterr().out


def test_init_writes_what_check_finds_nothing_wrong_with(started, capsys):
  name, said = started
  assert f"distil-jax train {name}/config.yaml" in said
  assert main.main(["check", f"{name}/config.yaml"]) == 0
  shown = capsys.readouterr().out
  assert "FAIL" not in shown
  for text in (
    "Ledger",
    f"512 problems of {name}/train.jsonl",
    "rollout.max_prompt_length=24",
    "completion ends with <|im_end|>",
    "Step 1 is missing: it should be ",  # in the teacher's prompt
    "checkpoints take at most",
  ):
    assert text in shown, text


def test_a_second_init_overwrites_nothing(started, capsys):
  name, _ = started
  assert main.main(["init", name]) == 1
  assert "exists already" in capsys.readouterr().err


def test_a_folder_that_is_no_package_is_used_from_within(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert main.main(["init", "my-task"]) == 0
  assert "cd my-task\n  distil-jax check config.yaml" in capsys.readouterr().out
  loaded = config.load("my-task/config.yaml")
  assert loaded.environment.function == "task:Ledger"
  assert loaded.data.train == "train.jsonl"
  assert loaded.name == "my-task"


def test_no_problem_of_the_starter_is_in_both_files(tmp_path):
  files = init.starter_files(tmp_path / "my_task")
  train, test = (
    files[name].splitlines() for name in ("train.jsonl", "test.jsonl")
  )
  assert len(set(train)) == len(train)
  assert not set(train) & set(test)


def test_the_environment_of_the_starter_keeps_the_contract():
  rows = [{"start": 47, "changes": [8, -3]}]
  contract.check(Ledger(), rows, completions=["47 + 8 = 55"])
  problem = Ledger().problem(rows[0])
  right = "47 + 8 = 55\n55 - 3 = 52\n<answer>52</answer>"
  assert Ledger().judge(problem, right).status == Status.CORRECT
  wrong = Ledger().judge(problem, right.replace("55", "54"))
  assert wrong.status == Status.CORRECT  # the answer alone counts
  verdict = Ledger().judge(problem, "47 + 8 = 54\n<answer>51</answer>")
  assert verdict.feedback == (
    "Step 1 is wrong: you wrote 47 + 8 = 54, it should be 47 + 8 = 55."
  )


@pytest.mark.parametrize(
  ("overrides", "part", "said"),
  [
    (["rollout.max_prompt_length=16"], "prompts", "raise"),
    (["data.train=nowhere.jsonl"], "data", "nowhere.jsonl"),
    (["environment={kind: nowhere:Make}"], "environment", "no module"),
    (["rollout.num_problems=600"], "data", "do not fill one step"),
    (["model.directory=nowhere"], "model", "nowhere"),
    (["mesh.tensor=5"], "devices", "mesh"),
  ],
)
def test_a_run_that_would_fail_is_found_out(started, overrides, part, said):
  loaded = config.load(f"{started[0]}/config.yaml", overrides)
  found = {x.name: x for x in run_check.RunCheck(loaded).all()}
  assert found[part].is_ok is False
  assert said in " ".join(found[part].lines)
  # The other parts are still looked at.
  assert found["folder"].is_ok


def test_a_histogram_has_a_row_for_each_range_and_marks_the_limit():
  lines = run_check.histogram(np.array([3, 3, 3, 9, 40]), 20)
  assert lines[0].split()[-1] == "3"
  assert sum("over the limit" in line for line in lines) > 0
  assert sum(line.count("#") for line in lines) >= 24
