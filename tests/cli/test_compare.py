"""`distil-jax compare`, from the first base model to the last picture."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from distil_jax import config as configs
from distil_jax.analysis.comparison import (
  record_settings,
  trial_record,
  trial_store,
)
from distil_jax.analysis.comparison.processes import end_all
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.cli import main
from tests.paths import ROOT

SMOKE = str(ROOT / "configs/comparison/smoke.yaml")
TINY = (
  "families.sparse.num_steps=2",
  "families.sparse.evaluate_every=1",
  "families.sparse.base_steps=2",
  "families.sparse.num_problems=2",
  "families.sparse.group_size=2",
  "families.sparse.network.width=8",
  "families.sparse.network.num_layers=1",
  "families.sparse.network.num_heads=2",
  "seeds=1",
  "num_held_out=4",
  # As many problems and samples as of the mean: the same program.
  "num_pass_problems=4",
  "pass_at=[1, 4]",
)


def compare(folder, *arguments):
  return main.main(
    ["compare", SMOKE, *TINY, f"run_directory={folder}", *arguments]
  )


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--family=spars"], ["--family spars", "length", "sparse"]),
    (["--arm=grp"], ["--arm grp", "distil_paper", "grpo"]),
    (["seedz=1"], ["seedz", "did you mean seeds"]),
    (["default=best"], ["default", "best"]),
    (
      ["families.words={config: nowhere.yaml}", "jobs=2"],
      ["families.words.config=nowhere.yaml", "no config file"],
    ),
    (["--report"], ["no trials in", "run the comparison first"]),
    (["--report", "--family=sparse"], ["leave out --family and --arm"]),
  ],
)
def test_mistakes_name_place_and_cure(tmp_path, capsys, arguments, words):
  assert compare(tmp_path / "run", *arguments) == 1
  message = capsys.readouterr().err
  for word in words:
    assert word in message
  assert not (tmp_path / "run").exists()


def test_named_twice_is_run_once(tmp_path, capsys):
  """Two processes on one file would spoil it; one is this very process."""
  folder = tmp_path / "bases/sparse-0"
  folder.mkdir(parents=True)
  (folder / "config.json").write_text("{}")
  (folder / "base.json").write_text('{"base_steps": 1}')
  before = jax.config.jax_compilation_cache_dir
  try:
    assert compare(tmp_path, "--family=sparse", "--family=sparse") == 1
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  message = capsys.readouterr().err
  assert "holds a base model" in message
  assert "families that failed" not in message


@pytest.mark.parametrize("option", ["--no-rep", "--rep", "--fam=sparse"])
def test_options_are_not_abbreviated(tmp_path, capsys, option):
  with pytest.raises(SystemExit):
    compare(tmp_path, option)
  assert "unrecognized arguments" in capsys.readouterr().err


def test_other_settings_are_refused_before_anything_is_run(tmp_path, capsys):
  comparison = configs.load_as(
    Comparison, SMOKE, [*TINY, f"run_directory={tmp_path}"]
  )
  trial = trial_record.Trial("sparse", "grpo", 0, 0, 1e-3)
  record = dataclasses.asdict(trial) | dict.fromkeys(trial_store._REQUIRED)
  record["settings"] = record_settings.settings_of(comparison, trial)
  trial_store.append(trial_store.file_of(tmp_path, "sparse"), record)
  assert compare(tmp_path, "num_held_out=5") == 1
  assert "num_held_out: 4 then, 5 now" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["trials"]


@pytest.mark.parametrize("mode", [(), ("--report",), ("--family=sparse",)])
def test_place_that_is_taken_by_a_file(tmp_path, capsys, mode):
  taken = tmp_path / "taken"
  taken.write_text("mine")
  for place in (taken, taken / "inside"):
    assert compare(place, *mode) == 1
    message = f"run_directory={place}: {taken} is a file"
    assert message in capsys.readouterr().err
  assert taken.read_text() == "mine"


def test_help_shows_settings_of_a_comparison(capsys):
  with pytest.raises(SystemExit) as end:
    main.main(["compare", "--help"])
  assert end.value.code == 0
  said = capsys.readouterr().out
  assert "seeds=3" in said
  assert "optimizer" not in said


def test_no_process_outlives_its_end():
  """One obeys; the other does not."""
  deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
  wait = "print('ready', flush=True); import time; time.sleep(60)"
  processes = [
    subprocess.Popen(
      [sys.executable, "-S", "-c", code + wait], stdout=subprocess.PIPE
    )
    for code in ("", deaf)
  ]
  for process in processes:
    process.stdout.readline()
  end_all(processes, seconds=0.3)
  assert [process.poll() for process in processes] == [-15, -9]
  for process in processes:
    process.stdout.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Runs one family with two arms, as often as it is called."""
  folder = tmp_path_factory.mktemp("comparison") / "run"
  before = jax.config.jax_compilation_cache_dir

  def again():
    only = ["--family=sparse", "--arm=grpo", "--arm=default"]
    assert compare(folder, *only) == 0
    return folder

  # The arms share the programs that evaluate, and a trial that is made again
  # has those of the first: to trace and compile them anew takes most of the
  # time. Of two arms there are few.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "clear_caches", lambda: None)
    yield again
  jax.config.update("jax_compilation_cache_dir", before)


def records(folder):
  lines = (folder / "trials/sparse.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def without_times(record):
  return {k: v for k, v in record.items() if "seconds" not in k}


def test_from_bases_to_pictures_and_on(run, capsys):
  folder = run()
  said = capsys.readouterr().out
  assert "sparse: base 0 made" in said
  assert "| family" in said
  assert str(folder / "report.md") in said
  found = records(folder)
  assert [r["arm"] for r in found] == ["grpo", "default"]
  for record in found:
    assert [point["step"] for point in record["curve"]] == [1, 2]
    assert record["before"] == found[0]["before"]
    assert set(record["after"]) == {"avg", "pass@1", "pass@4"}
  assert [r["curve"][0]["score_share"] == 1 for r in found] == [True, False]
  report = (folder / "report.md").read_text()
  assert report.startswith("# smoke\n")
  base = json.loads((folder / "bases/sparse-0/base.json").read_text())
  assert (base["base_steps"], base["base_batch_size"]) == (2, 128)
  assert found[0]["device"]
  assert (folder / "table.md").read_text().strip() in report
  for name in ("accuracy", "time", "measures"):
    head = (folder / f"{name}.png").read_bytes()[:4]
    assert head == b"\x89PNG", name

  # Once more: nothing is left to do.
  path = folder / "trials/sparse.jsonl"
  bytes_before = path.read_bytes()
  run()
  said = capsys.readouterr().out
  assert "base 0" not in said
  assert path.read_bytes() == bytes_before
  assert (folder / "report.md").read_text() == report

  # Killed while it wrote: the lost trial is made again, and is the same.
  path.write_bytes(bytes_before[:-40])
  run()
  said = capsys.readouterr().out
  assert "made" not in said
  assert "grpo" not in said.split("|")[0]
  again = records(folder)
  assert list(map(without_times, again)) == list(map(without_times, found))

  # The report of what is there, of which nothing is run.
  (folder / "report.md").unlink()
  trials = path.read_text()
  path.write_text(trials.splitlines()[0] + "\n")
  assert compare(folder, "--report") == 0
  said = capsys.readouterr().out
  assert "No family has both `default` and another arm" in said
  assert "| grpo" in (folder / "table.md").read_text()
  assert "default" not in (folder / "table.md").read_text().split("\n\n")[0]
  assert (folder / "report.md").is_file()
  assert compare(folder, "--report", "num_held_out=5") == 1
  assert "num_held_out: 4 then, 5 now" in capsys.readouterr().err
  path.write_text(trials)


def test_gradients_alone(run, capsys):
  folder = run()
  trials = (folder / "trials/sparse.jsonl").read_bytes()
  settings = [
    "gradients={families: [sparse], arms: [grpo], num_batches: 2, "
    "num_reference: 2}"
  ]
  capsys.readouterr()
  assert compare(folder, "--gradients", *settings) == 0
  assert "gradients of 1 arms measured" in capsys.readouterr().out
  text = (folder / "gradients.md").read_text()
  assert "| sparse | grpo |" in text
  assert "Computed on: " in text
  assert (folder / "trials/sparse.jsonl").read_bytes() == trials
  # What is there is not measured again.
  assert compare(folder, "--gradients", *settings) == 0
  assert "measured" not in capsys.readouterr().out
  assert (folder / "gradients.md").read_text() == text
  assert compare(folder, "--report", *settings) == 0
  assert "## Gradients at the base" in (folder / "report.md").read_text()


def test_gradients_that_nobody_names(tmp_path, capsys):
  assert compare(tmp_path, "--gradients") == 1
  assert "name families and arms under `gradients`" in capsys.readouterr().err
  assert compare(tmp_path, "--gradients", "--arm=default") == 1
  assert "leave out --family and --arm" in capsys.readouterr().err
  assert compare(tmp_path, "--gradients", "--report") == 1
  assert "one at a time" in capsys.readouterr().err
