"""A teacher that forgets how to read feedback is noticed and held."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.data import padding
from distil_jax.envs.calculator import Calculator
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.generation import engine
from distil_jax.generation.policy import load_policy
from distil_jax.models import sharding
from distil_jax.training import (
  batch_builder,
  build_step,
  teacher_guard,
  teacher_probe,
  train_state,
)
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import Rollout, Status, StopReason, Verdict
from tests import commands, networks, rollout_workers


def watch(accuracies, margin=0.1, num_answers=20):
  """The guard after each look."""
  state, seen = teacher_guard.init_state(), []
  for accuracy in accuracies:
    state = teacher_guard.look(
      state, accuracy * num_answers, num_answers, margin=margin
    )
    seen.append(jax.tree.map(float, state))
  return seen


def test_the_start_is_the_mean_of_the_first_looks():
  seen = watch([0.4, 0.8, 0.6, 0.2, 0.5, 0.9])
  starts = [0.4, 0.6, 0.6, 0.5, 0.5]
  np.testing.assert_allclose([s.start for s in seen], [*starts, 0.5], rtol=1e-6)
  # From then on the accuracy moves by a fifth of the way: .5 + .2 (.9 - .5).
  np.testing.assert_allclose(
    [s.accuracy for s in seen], [*starts, 0.58], rtol=1e-6
  )
  assert not any(s.is_holding for s in seen)


def test_it_holds_below_the_margin_and_lets_go_above():
  # .8, then .8 * .8 = .64 (holds), .512; then towards 1: .6096, .68768, .750.
  seen = watch([0.8] * 5 + [0.0, 0.0] + [1.0] * 3)
  np.testing.assert_allclose(
    [s.accuracy for s in seen[4:]],
    [0.8, 0.64, 0.512, 0.6096, 0.68768, 0.750144],
    rtol=1e-5,
  )
  assert [bool(s.is_holding) for s in seen[4:]] == [
    False,
    True,
    True,
    True,
    True,
    False,
  ]
  assert not any(s.is_holding for s in watch([0.8] * 5 + [0.0], margin=0.2))


def test_a_look_without_answers_is_none():
  state = teacher_guard.look(teacher_guard.init_state(), 3.0, 4.0, margin=0.1)
  same = teacher_guard.look(state, 0.0, 0.0, margin=0.1)
  jax.tree.map(np.testing.assert_array_equal, same, state)
  assert [x.dtype for x in jax.tree.leaves(same)] == [
    x.dtype for x in jax.tree.leaves(teacher_guard.init_state())
  ]


@pytest.mark.parametrize("action", ["freeze", "roll_back"])
def test_a_held_teacher_stays_or_goes_back(action):
  network = networks.network(seed=3, num_layers=1)
  batch = networks.random_batch(seed=3)
  initial = network.params
  spoiled = networks.random_params(initial, seed=4)
  step = jax.jit(
    build_step.train_step(
      config.DistilConfig(future_weight=0.0),
      config.TeacherConfig(parameters="ema", ema_rate=0.25),
      graphdef=network.graphdef,
      optimizer=optax.sgd(0.3),
      group_size=4,
      num_sequences=8,
    )
  )
  state = train_state.init_state(
    initial,
    optimizer=optax.sgd(0.3),
    keeps_teacher=True,
    seed=0,
    guard_action=action,
  )
  state = dataclasses.replace(state, teacher_params=spoiled)
  held = dataclasses.replace(state.guard, is_holding=jnp.asarray(True))

  def mixed(tree, other, rate):
    return jax.tree.map(lambda a, b: (1 - rate) * a + rate * b, tree, other)

  def check(given, expected):
    after, _ = step(given, batch)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      after.teacher_params,
      expected(after),
    )
    return after

  check(state, lambda after: mixed(spoiled, after.params, 0.25))
  held_state = dataclasses.replace(state, guard=held)
  expected = spoiled if action == "freeze" else mixed(spoiled, initial, 0.25)
  after = check(held_state, lambda _: expected)
  # The student learns all the same, and where to go back to stays.
  assert networks.distance(after.params, initial) > 1e-2
  if action == "roll_back":
    jax.tree.map(np.testing.assert_array_equal, after.initial_params, initial)


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def test_a_spoiled_teacher_is_caught_reading(mesh, monkeypatch):
  """The base model, with feedback, against one whose weights are noise."""
  # Slots are not given up: each number of them is a program.
  monkeypatch.setattr(engine, "ladder", lambda width: [width])
  environment = Calculator()
  policy = load_policy("embedded:calculator", mesh=mesh)
  group_size, num_answers = 2, 16
  problems = [environment.generate(i, split="train") for i in range(12)]
  texts, verdicts = [], []
  for i, problem in enumerate(problems):
    wrong = "<answer>100</answer>"
    # The first members of the first four groups are right.
    for is_right in (i < 4, False):
      text = f"<answer>{problem.answer}</answer>" if is_right else wrong
      texts.append(text)
      verdicts.append(environment.judge(problem, text))
  rows = [policy.tokenizer.encode(text) for text in texts]
  ids, mask = padding.pad_right(rows, 16, policy.tokenizer.pad_id)
  prompt_ids, prompt_mask = padding.pad_left(
    [policy.tokenizer.encode_messages(p.messages) for p in problems],
    24,
    policy.tokenizer.pad_id,
  )
  experience = Experience(
    problems=problems,
    group_size=group_size,
    rollout=Rollout(
      prompt_ids=prompt_ids,
      prompt_mask=prompt_mask,
      completion_ids=ids,
      completion_mask=mask,
      log_probs=np.zeros(ids.shape, np.float32),
      behavior_log_probs=np.zeros(ids.shape, np.float32),
      stop_reasons=np.full(len(texts), StopReason.EOS),
    ),
    completions=texts,
    verdicts=verdicts,
  )
  batch, stats = batch_builder.from_experience(
    experience,
    policy.tokenizer,
    batch_builder.TeacherSettings(
      solution="reference",
      feedback="never",
      success_threshold=1.0,
      max_prompt_length=120,
    ),
  )
  judges = JudgePool(environment)
  worker = rollout_workers.make(
    policy,
    judges,
    mesh,
    group_size=1,
    max_prompt_length=120,
    max_completion_length=48,
  )
  inspect = teacher_probe.TeacherProbe(
    worker, policy, judges, mesh, num_answers, success_threshold=1.0
  )
  with jax.set_mesh(mesh):
    good = inspect(policy.params, experience, batch, stats, jax.random.key(0))
    again = inspect(policy.params, experience, batch, stats, jax.random.key(0))
    noise = networks.random_params(policy.params, seed=0)
    bad = inspect(noise, experience, batch, stats, jax.random.key(0))
    # Told nothing, the same weights are right less than half of the time.
    silent = dataclasses.replace(
      stats,
      teacher_prompt_ids=np.repeat(prompt_ids, group_size, axis=0),
      teacher_prompt_mask=np.repeat(prompt_mask, group_size, axis=0),
    )
    untold = inspect(
      policy.params,
      experience,
      batch,
      silent,
      jax.random.key(0),
    )
  assert again == good
  assert good[1] == bad[1] == num_answers
  assert good[0] >= 12
  assert untold[0] < good[0] - 2
  assert bad[0] == 0
  state = teacher_guard.init_state()
  for counts in [good] * 5 + [bad]:
    assert not state.is_holding
    state = teacher_guard.look(state, *counts, margin=0.1)
  assert state.is_holding


def test_failures_of_different_problems_are_asked_first(mesh):
  """Two groups of three: the rows that failed and have a signal."""
  batch = networks.random_batch().replace(
    sample_mask=np.asarray([1, 1, 1, 1, 0, 1])
  )
  inspect = teacher_probe.TeacherProbe(None, None, None, mesh, 3, 0.5)  # pyright: ignore
  experience = Experience(
    problems=[None, None],
    group_size=3,
    rollout=None,
    completions=[],
    verdicts=[
      Verdict(reward, "", Status.WRONG) for reward in (0, 1, 0.25, 0.5, 0, 0)
    ],
  )
  # Members 0, 1, 2 of both: 0 and 3 is right, 1 is right and 4 silent, 2 and 5.
  assert inspect._failures(experience, batch) == [0, 2, 5]


# Right and wrong by a check sum, so that a random network is both.
_TRAIN = """
import sys, zlib
from distil_jax import config
from distil_jax.envs.calculator import Calculator
from distil_jax.generation import engine
from distil_jax.training import trainer
from distil_jax.training.setup import environments
from distil_jax.types import Status, Verdict

engine.ladder = lambda width: [width]  # each number of slots is a program

class CheckSum(Calculator):
  def judge(self, problem, completion):
    is_right = zlib.crc32(f"{problem.index} {completion}".encode()) % 2
    status = Status.CORRECT if is_right else Status.WRONG
    return Verdict(float(is_right), "" if is_right else "no", status)

environments.build_environment = lambda config: CheckSum()
trainer.Trainer(config.load(sys.argv[1], sys.argv[2:])).train()
"""
_CONFIG = """
model:
  remat: none
  create: {vocab_size: 300, width: 16, num_layers: 1, num_heads: 2,
           num_kv_heads: 1, head_size: 8, mlp_size: 16}
data: {num_train: 32, num_evaluation: 4}
rollout: {num_problems: 4, group_size: 2, max_prompt_length: 64,
          max_completion_length: 4}
teacher: {max_prompt_length: 160, parameters: ema, ema_rate: 0.5,
          guard: {margin: 0.0, num_problems: 4, action: roll_back}}
optimizer: {learning_rate: 1e-2}
evaluation: {num_problems: 4, num_samples: 2, pass_at: [1]}  # as in training
checkpoint: {every: 8}
logging: {tensorboard: false, rollouts_every: 0}
train: {num_steps: 10}
"""


def train(folder, name):
  (folder / "tiny.yaml").write_text(_CONFIG)
  arguments = [
    folder / "tiny.yaml",
    f"model.directory={folder / 'model'}",
    f"train.run_directory={folder / name}",
  ]
  program = ("-c", _TRAIN)
  with commands.start(arguments, folder / "compiled", program) as process:
    _, err = process.communicate(timeout=120)
  assert process.returncode == 0, err


def lines(path):
  """All but the times."""
  text = (path / "metrics.jsonl").read_text().splitlines()
  made = [json.loads(line) for line in text]
  return [
    {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))}
    for line in made
  ]


def test_a_guarded_run_goes_on_bit_for_bit(tmp_path):
  train(tmp_path, "whole")
  expected = lines(tmp_path / "whole")
  held = [line["teacher/guard"] for line in expected]
  assert held[:5] == [0.0] * 5
  assert 1.0 in held
  assert len({line["teacher/accuracy"] for line in expected}) > 3

  shutil.copytree(tmp_path / "whole", tmp_path / "broken")
  shutil.rmtree(tmp_path / "broken/checkpoints/10")
  train(tmp_path, "broken")
  assert lines(tmp_path / "broken") == expected
