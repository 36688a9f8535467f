"""A run that is killed or interrupted goes on as if nothing had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from distil_jax import config
from distil_jax.training import checkpoints, resume, retention, train_state
from distil_jax.training.logging import progress
from tests.commands import ROOT, run, start

CONFIG = """
model:
  remat: none
  create: {vocab_size: 300, width: 16, num_layers: 1, num_heads: 2,
           num_kv_heads: 1, head_size: 8, mlp_size: 16}
data: {train: generated, evaluation: generated, num_train: 64,
       num_evaluation: 6}
environment: {kind: calculator}
rollout: {num_problems: 4, group_size: 2, max_prompt_length: 80,
          max_completion_length: 8}
teacher: {max_prompt_length: 160}
optimizer: {learning_rate: 1e-2, tokens_per_micro_batch: 700}
evaluation: {every: 2, num_samples: 2, pass_at: [1, 2], num_problems: 4}
checkpoint: {every: 2, keep: 2, keep_best: 1, keep_every: 4}
logging: {rollouts_every: 3, tensorboard: false}
train: {num_steps: 8}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("resume")
  (folder / "tiny.yaml").write_text(CONFIG)
  return folder


def arguments(folder, name, *overrides):
  return [
    "train",
    folder / "tiny.yaml",
    f"train.run_directory={folder / name}",
    f"model.directory={folder / 'model'}",
    *overrides,
  ]


def train(folder, name, *overrides):
  done = run(arguments(folder, name, *overrides), folder / "compiled")
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope="module")
def uninterrupted(folder):
  train(folder, "uninterrupted")
  return folder / "uninterrupted"


def saved_steps(run_folder):
  return {int(x.name) for x in (run_folder / "checkpoints").iterdir()}


def test_last_best_and_every_fourth_checkpoint_are_kept(uninterrupted):
  accuracies = retention.read_accuracies(uninterrupted)
  assert sorted(accuracies) == [0, 2, 4, 6, 8]
  best = max((2, 4, 6, 8), key=lambda step: (accuracies[step], step))
  assert saved_steps(uninterrupted) == {4, 6, 8, best}


def numbers(path):
  """All that a report says but the times, which no run repeats."""
  if not path.exists():
    return []
  # A line that is being written has no line break yet.
  lines = path.read_text().split("\n")[:-1]
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if not k.startswith(("time/", "memory/"))
    }
    for line in lines
  ]


def wait_for(condition, process):
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.002)


def test_killed_run_repeats_the_uninterrupted_one(folder, uninterrupted):
  killed = folder / "killed"

  def is_in_the_middle():
    is_saved = (killed / "checkpoints/2").is_dir()
    return is_saved and len(numbers(killed / "metrics.jsonl")) >= 3

  with start(arguments(folder, "killed"), folder / "compiled") as process:
    wait_for(is_in_the_middle, process)
    process.kill()
  assert process.returncode == -signal.SIGKILL
  assert not (killed / "summary.json").exists()
  # A line that the end cut off must not disturb.
  with (killed / "metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "lo')

  done = train(folder, "killed")
  assert "going on from step" in done.stderr
  for name in ("metrics.jsonl", "evaluations.jsonl"):
    expected = numbers(uninterrupted / name)
    assert numbers(killed / name) == expected
    assert expected[-1]["step"] == 8
  # The best one so far is not forgotten.
  assert saved_steps(killed) == saved_steps(uninterrupted)
  pages = [
    sorted((run_folder / "rollouts").iterdir())
    for run_folder in (killed, uninterrupted)
  ]
  for ours, theirs in zip(*pages, strict=True):
    assert ours.name == theirs.name
    assert ours.read_text() == theirs.read_text()


def test_interrupted_run_loses_no_step(folder):
  """By SIGINT; test_hosts.py sends SIGTERM."""
  name = "stopped"
  stopped = folder / name
  # Only the interruption itself can save.
  overrides = (
    "train.num_steps=100000",
    "checkpoint.every=100000",
    "checkpoint.keep_best=0",
    "checkpoint.keep_every=null",
  )
  with start(
    arguments(folder, name, *overrides), folder / "compiled"
  ) as process:
    wait_for(lambda: len(numbers(stopped / "metrics.jsonl")) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "Traceback" not in err
  step = numbers(stopped / "metrics.jsonl")[-1]["step"]
  assert f"step {step} is saved" in err
  assert (stopped / "checkpoints" / str(step)).is_dir()
  assert not (stopped / "summary.json").exists()


# Trains, and gets a real signal while step 6 is being sampled, when the data
# iterator is one batch ahead of the state.
_INTERRUPTED_ROLLOUT = """
import itertools, signal, sys
from distil_jax import config
from distil_jax.training import trainer

run = trainer.Trainer(config.load(sys.argv[1], sys.argv[2:]))
sample, count = run.rollout_worker, itertools.count(1)

def interrupted(*arguments, **settings):
  if next(count) == 6:
    signal.raise_signal(signal.SIGINT)
  return sample(*arguments, **settings)

run.rollout_worker = interrupted
run.train()
"""


@pytest.mark.usefixtures("interruptible")
def test_run_interrupted_while_sampling_repeats_the_uninterrupted_one(
  folder, uninterrupted
):
  name = "interrupted"
  command, *settings = arguments(folder, name)
  assert command == "train"
  with start(
    settings, folder / "compiled", program=("-c", _INTERRUPTED_ROLLOUT)
  ) as process:
    _, err = process.communicate(timeout=120)
  assert "KeyboardInterrupt" in err
  assert "step 5 is saved" in err

  done = train(folder, name)
  assert "going on from step 5" in done.stderr
  for report in ("metrics.jsonl", "evaluations.jsonl"):
    assert numbers(folder / name / report) == numbers(uninterrupted / report)


def test_evaluation_that_an_interruption_prevented_is_made_up_for(
  folder, uninterrupted
):
  """After the last checkpoint turns out to be damaged."""
  # As if the run had been interrupted after it saved step 6.
  shutil.copytree(uninterrupted, folder / "unevaluated")
  (folder / "unevaluated/checkpoints/8/state/manifest.ocdbt").unlink()
  path = folder / "unevaluated/evaluations.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  assert [json.loads(line)["step"] for line in lines] == [0, 2, 4, 6, 8]
  path.write_text("".join(lines[:-2]))
  done = train(folder, "unevaluated")
  assert "skipped the checkpoint of step 8, using step 6" in done.stderr
  assert "Traceback" not in done.stderr
  assert "going on from step 6" in done.stderr
  assert (folder / "unevaluated/damaged_checkpoints/8.0").is_dir()
  assert (folder / "unevaluated/checkpoints/8").is_dir()
  assert numbers(path) == numbers(uninterrupted / "evaluations.jsonl")


# A compiled program that never ends: Python does not come to its handlers.
_STUCK = """
import jax
from distil_jax.distributed import signals
spin = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, jax.numpy.sin, x))
with signals.raised(), signals.deferred():
  print("stuck", flush=True)
  spin(1.0).block_until_ready()
"""


def test_second_interruption_ends_the_process_at_once():
  with subprocess.Popen(
    [sys.executable, "-c", _STUCK],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      assert process.stdout.readline() == "stuck\n"
      process.send_signal(signal.SIGINT)
      with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
      process.send_signal(signal.SIGINT)
      assert process.wait(timeout=10) == 130
    finally:
      process.kill()


# What is printed is still in Python's buffer when the process ends.
_ENDED = """
import atexit
from distil_jax.distributed import signals
atexit.register(print, "registered")
print("printed")
signals.end_process()
"""


def test_interrupted_process_ends_in_order():
  done = subprocess.run(
    [sys.executable, "-c", _ENDED],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 130
  assert done.stdout == "printed\nregistered\n"


@pytest.fixture
def saved_after(tmp_path, capsys):
  """Saves a run that an error ends after two steps; returns what it says."""

  def save(state, error):
    with (
      checkpoints.Checkpoints(tmp_path, keep=2) as saved,
      progress.Progress(4) as line,
    ):
      notes = resume.RunNotes(1.0, position=32, prompt_widths={})
      resume.save_interrupted(
        config.parse({}), saved, state, notes, line, error
      )
      return saved.latest_step, capsys.readouterr().err

  return save


def two_steps():
  params = {"w": jnp.arange(3.0)}
  return train_state.TrainState(
    step=jnp.int32(2),
    params=params,
    teacher_params=None,
    opt_state=(),
    key=jnp.zeros(2, jnp.uint32),
  )


@pytest.mark.parametrize(
  ("error", "why"),
  [
    (ValueError("a row"), "ended by ValueError"),
    (KeyboardInterrupt(), "interrupted"),
  ],
)
def test_any_error_saves_the_finished_steps(saved_after, error, why):
  step, said = saved_after(two_steps(), error)
  assert step == 2
  assert f"{why}: step 2 is saved; the same command goes on from it" in said


def test_a_state_that_a_failed_step_took_with_it_hides_no_error(saved_after):
  state = two_steps()
  state.params["w"].delete()
  step, said = saved_after(state, ValueError("a row"))
  assert step is None
  assert "ValueError: the failed step took the state with it" in said
