"""Two processes train together, fail together, and go on from each other."""

import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

import distil_jax as dj
from distil_jax.training import checkpoints
from distil_jax.training.logging import rollout_records
from tests.commands import WITH_FEW_PROGRAMS, free_port, run, start

CONFIG = """
model: {remat: none}
data: {train: generated, evaluation: generated, num_train: 64,
       num_evaluation: 3}
environment: {kind: calculator, num_steps: [3, 3]}
rollout: {num_problems: 2, group_size: 2, max_prompt_length: 32,
          max_completion_length: 48, refill: {max_rounds: 2}}
teacher: {max_prompt_length: 128, solution: sibling, feedback: never}
objective: {baseline: leave_one_out}
optimizer: {learning_rate: 1e-4}
evaluation: {every: 4, num_samples: 2, pass_at: [1, 2], num_problems: 2}
checkpoint: {every: 2}
logging: {rollouts_every: 3, tensorboard: false}
train: {num_steps: 8}
"""
SECONDS = 60  # within which all end, when one does


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hosts")
  (folder / "tiny.yaml").write_text(CONFIG)
  return folder


def arguments(folder, name, *overrides, command="train"):
  config = [command, folder / "tiny.yaml"]
  if command == "export":
    config.append(folder / f"{name}_exported")
  return [*config, f"train.run_directory={folder / name}", *overrides]


def launched(index, port, *, count=2):
  return [
    f"--coordinator=127.0.0.1:{port}",
    f"--num-processes={count}",
    f"--process-id={index}",
  ]


@contextlib.contextmanager
def together(commands, compiled, program=WITH_FEW_PROGRAMS):
  """Starts one process for each command; none outlives the block."""
  port = free_port()
  children = [
    start([*command, *launched(index, port)], compiled, program)
    for index, command in enumerate(commands)
  ]
  try:
    yield children
  finally:
    for child in children:
      child.kill()
      child.communicate()


def ends(children, seconds=240):
  """Status and output of each; all must end."""
  deadline = time.monotonic() + seconds
  found = []
  for child in children:
    left = max(deadline - time.monotonic(), 0.1)
    out, err = child.communicate(timeout=left)
    found.append(subprocess.CompletedProcess((), child.returncode, out, err))
  return found


def run_together(folder, name, *overrides, command="train"):
  commands = [arguments(folder, name, *overrides, command=command)] * 2
  with together(commands, folder / "compiled") as children:
    first, second = ends(children)
  assert first.returncode == second.returncode == 0, first.stderr
  said = (second.stdout + second.stderr).splitlines()
  said = [line for line in said if not line.startswith("[Gloo]")]
  assert not said, "only the first process speaks"
  return first


def numbers(run_directory, report="metrics.jsonl"):
  path = run_directory / report
  if not path.exists():
    return []
  lines = path.read_text().split("\n")[:-1]
  # Programs are counted anew when a run goes on; no run repeats its times.
  return [
    {
      key: value
      for key, value in json.loads(line).items()
      if not key.startswith(("time/", "memory/")) and key != "rollout/programs"
    }
    for line in lines
  ]


def params(run_directory):
  base = dj.load_policy("embedded:calculator").params
  step, found = checkpoints.last_params(run_directory / "checkpoints", base)
  return step, jax.tree.map(np.asarray, found)


def wait_for(condition, children):
  deadline = time.monotonic() + 200
  while not condition():
    for child in children:
      assert child.poll() is None, child.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.005)


@pytest.fixture(scope="module")
def alone(folder):
  """One process with as many devices, never interrupted."""
  done = run(
    arguments(folder, "alone"),
    folder / "compiled",
    program=WITH_FEW_PROGRAMS,
    num_devices=2,
  )
  assert done.returncode == 0, done.stderr
  expected = numbers(folder / "alone")
  assert 0 < sum(line["reward"] for line in expected) < len(expected)
  assert sum(line["groups/refilled"] for line in expected) > 0
  return folder / "alone"


@pytest.fixture(scope="module")
def killed(folder):
  """What is left where one of two processes was killed between checkpoints."""
  place = folder / "killed"
  commands = [arguments(folder, "killed")] * 2
  with together(commands, folder / "compiled") as children:
    wait_for(
      lambda: (
        (place / "checkpoints/2").is_dir() and len(numbers(place)) in (3, 5)
      ),
      children,
    )
    children[1].kill()
    first, second = ends(children, SECONDS)
  assert second.returncode == -signal.SIGKILL
  assert first.returncode == 1
  assert "distil-jax: process 0: ends with process 1 (" in first.stderr
  assert "gave no sign of life" in first.stderr
  assert not (place / "summary.json").exists()
  shutil.copytree(place, folder / "elastic")
  return place


def test_killed_pair_goes_on_as_if_one_process_had_run(folder, alone, killed):
  """Bit for bit, with the same command."""
  done = run_together(folder, "killed")
  assert "going on from step" in done.stderr
  for report in ("metrics.jsonl", "evaluations.jsonl"):
    assert numbers(killed, report) == numbers(alone, report)
  assert json.loads((killed / "summary.json").read_text())["steps"] == 8
  for page in (alone / "rollouts").iterdir():
    assert (killed / "rollouts" / page.name).exists()
  found, expected = (
    list(rollout_records.read_folder(place / "rollouts"))
    for place in (killed, alone)
  )
  # The first of two processes has half of the samples.
  assert 0 < len(found) < len(expected)
  assert all(sample in expected for sample in found)
  (step, ours), (other, theirs) = params(killed), params(alone)
  assert step == other == 8
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)

  run_together(folder, "killed", command="export")
  exported = dj.load_policy(folder / "killed_exported").params
  jax.tree.map(np.testing.assert_array_equal, exported, ours)


def test_another_number_goes_on_and_all_stop_at_one_step(folder, alone, killed):
  """From two processes to one with one device, and to two; then SIGTERM."""
  del killed
  place = folder / "elastic"
  done = run(
    arguments(folder, "elastic", "train.num_steps=6"),
    folder / "compiled",
    program=WITH_FEW_PROGRAMS,
  )
  assert done.returncode == 0, done.stderr
  assert "going on from step" in done.stderr

  endless = ("train.num_steps=100000", "checkpoint.every=100000")
  commands = [arguments(folder, "elastic", *endless)] * 2
  with together(commands, folder / "compiled") as children:
    wait_for(lambda: len(numbers(place)) >= 9, children)
    children[1].send_signal(signal.SIGTERM)
    both = ends(children, SECONDS)
  for index, done in enumerate(both):
    assert done.returncode == 130, done.stderr
    text = f"process {index}: process 1 was asked to stop by SIGTERM"
    assert text in done.stderr
    assert "Traceback" not in done.stderr
  assert "going on from step 6" in both[0].stderr
  step = numbers(place)[-1]["step"]
  assert f"step {step} is saved" in both[0].stderr
  assert params(place)[0] == step

  # Sums over devices are in another order: rounding, and no more.
  for ours, theirs in zip(numbers(place), numbers(alone), strict=False):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
      if not key.startswith(("mismatch/", "rollout/")):
        assert ours[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


# The second process fails once it has judged its second batch.
_FAILING = """
import itertools, sys
from distil_jax.cli import main
from distil_jax.generation import engine
from distil_jax.training.rollouts.rollout_worker import RolloutWorker

engine.ladder = lambda width: [width]  # each number of slots is a program

call, count = RolloutWorker.__call__, itertools.count()

def failing(self, *arguments, **settings):
  experience = call(self, *arguments, **settings)
  if "--process-id=1" in sys.argv and next(count) == 1:
    raise OSError("No space left on device")
  return experience

RolloutWorker.__call__ = failing
sys.exit(main.main())
"""


def test_failure_of_one_process_is_told_by_the_other(folder):
  commands = [arguments(folder, "failed", command="evaluate")] * 2
  program = ("-c", _FAILING)
  compiled = folder / "compiled"
  with together(commands, compiled, program=program) as children:
    first, second = ends(children, 200)
  assert "distil-jax: process 1: No space left on device" in second.stderr
  for text in ("process 0: ends with process 1 (", "No space left on device"):
    assert text in first.stderr
  assert first.returncode == second.returncode == 1


def test_processes_that_differ_are_refused(folder, tmp_path):
  """Other settings; other data, by a row that is malformed on one host."""
  rows = [{"prompt": f"Compute {i} + 1.", "answer": "A"} for i in range(8)]
  lines = [json.dumps(row) + "\n" for row in rows]
  contents = {"same": lines, "bad": [*lines, "{\n"]}
  for name, content in contents.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / "rows.jsonl").write_text("".join(content))
  reading = [
    *arguments(tmp_path, "run", "environment.kind=multiple_choice"),
    "data.train=rows.jsonl",
    "data.evaluation=rows.jsonl",
    "data.malformed_rows=skip",
  ]
  (tmp_path / "tiny.yaml").write_text(CONFIG.replace("num_steps: [3, 3]", ""))
  cases = {
    "settings": ("same", [*reading, "train.seed=7"]),
    "data": ("bad", reading),
  }
  with contextlib.ExitStack() as all_of_them:
    pairs = {}
    for name, (where, command) in cases.items():
      port = free_port()
      pairs[name] = [
        all_of_them.enter_context(
          start(
            [*words, *launched(index, port)],
            tmp_path / "compiled",
            directory=tmp_path / place,
          )
        )
        for index, (words, place) in enumerate(
          ((reading, "same"), (command, where))
        )
      ]
    try:
      found = {name: ends(pair, SECONDS) for name, pair in pairs.items()}
    finally:
      for child in itertools.chain(*pairs.values()):
        child.kill()
  expected = {
    "settings": "train.seed: 0 in process 0, 7 in process 1",
    "data": "malformed rows: 0 in process 0, 2 in process 1",
  }
  for name, text in expected.items():
    for done in found[name]:
      assert done.returncode == 1
      assert text in done.stderr, (name, done.stderr)
  assert not (tmp_path / "run").exists()
