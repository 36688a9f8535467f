"""`train --sweep`: which runs it makes, and what it does with them."""

import pytest

from distil_jax import config
from distil_jax.cli import main, sweep, train
from tests.analysis.report import made_up_runs
from tests.paths import ROOT

QUICKSTART = str(ROOT / "configs/calculator/quickstart.yaml")


def test_product_of_values_in_folders_of_their_own():
  folder, found = sweep.trials(
    QUICKSTART,
    ["train.num_steps=7"],
    ["optimizer.learning_rate=1e-5,3e-5", "train.seed=0..2"],
  )
  assert str(folder) == "runs/quickstart_sweep"
  assert [trial.name for trial in found] == [
    f"learning_rate={rate},seed={seed}"
    for rate in ("1e-5", "3e-5")
    for seed in (0, 1, 2)
  ]
  last = found[-1].config
  assert (last.optimizer.learning_rate, last.train.seed) == (3e-5, 2)
  assert last.train.num_steps == 7
  assert last.run_directory == folder / "learning_rate=3e-5,seed=2"


def test_values_in_brackets_stay_together():
  folder, found = sweep.trials(
    QUICKSTART,
    ["train.run_directory=elsewhere"],
    ["evaluation.pass_at=[1,4],[1]", "objective={kind: grpo},{kind: sdpo}"],
  )
  assert str(folder) == "elsewhere"
  assert [x.config.evaluation.pass_at for x in found] == [(1, 4)] * 2 + [
    (1,)
  ] * 2
  assert [x.config.objective.kind for x in found] == ["grpo", "sdpo"] * 2
  names = [trial.name for trial in found]
  assert names[0] == "pass_at=_1,4_,objective=_kind__grpo_"


@pytest.mark.parametrize(
  ("parts", "says"),
  [
    (["train.seed"], "needs key=value,value or key=first..last"),
    (["train.seed=0", "train.seed=1"], "is given twice"),
    (["train.seed=0,0"], "two runs would be 'seed=0'"),
    (["train.seed=0..999999999"], "more than 1000"),
    (["train.run_directory=a,b"], "a folder of its own"),
    (["train.sead=0,1"], "did you mean"),
  ],
)
def test_mistakes_are_told_before_the_first_run(parts, says):
  with pytest.raises(config.ConfigError, match=says):
    sweep.trials(QUICKSTART, [], parts)


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
  asked = []

  def train_one(settings):
    asked.append(settings.train.seed)
    if settings.train.seed == 1 and asked.count(1) == 1:
      raise RuntimeError("the disk is full")
    made_up_runs.write_run(
      settings.run_directory, seed=settings.train.seed, num_steps=12
    )

  monkeypatch.setattr(train, "_train", train_one)
  command = [
    *("train", QUICKSTART, f"train.run_directory={tmp_path}"),
    *("train.num_steps=12", "--sweep", "train.seed=0..2"),
  ]
  assert main.main(command) == 1
  said = capsys.readouterr()
  assert "seed=1: the disk is full" in said.err
  assert "1 of 3 runs failed: seed=1" in said.err
  assert main.main(command) == 0
  assert asked == [0, 1, 2, 1]  # the finished ones are not trained again
  said = capsys.readouterr()
  assert "±" in said.out
  assert (tmp_path / "summary.txt").read_text() == said.out
  assert "<h1>3 runs</h1>" in (tmp_path / "report.html").read_text()


def test_what_comes_next_is_told_on_stderr(tmp_path, monkeypatch, capsys):
  summary = {"steps": 12, "seconds": 3.2}
  monkeypatch.setattr(train, "_train", lambda settings: summary)
  assert (
    main.main(["train", QUICKSTART, f"train.run_directory={tmp_path}"]) == 0
  )
  said = capsys.readouterr()
  assert said.out == ""
  assert "12 steps in 3 s; metrics, learning.png, rollouts" in said.err
  assert f"next: distil-jax report {tmp_path}" in said.err
