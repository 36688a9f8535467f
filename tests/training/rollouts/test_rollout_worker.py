"""From problems to verdicts, found while others are still sampled."""

import threading
import time
import zlib

import jax
import numpy as np
import pytest

from distil_jax.config.environments import JudgingConfig
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.generation import engine
from distil_jax.models import sharding
from distil_jax.types import Problem, Status, Verdict
from tests import networks, rollout_workers

GROUP_SIZE, LENGTH = 2, 5
PROBLEMS = [
  Problem(
    index=i, messages=({"role": "user", "content": f"What is {i}?"},), answer=""
  )
  for i in range(4)
]


class CheckSum:
  """Right and wrong by a check sum; some problems it cannot judge."""

  def __init__(self, crashes_at=None, hangs_at=None):
    self.crashes_at, self.hangs_at = crashes_at, hangs_at
    self.is_asked = threading.Event()
    self.num_judged = 0

  def problem(self, row, index=0):
    raise NotImplementedError("these problems come from no file")

  def judge(self, problem, completion):
    self.is_asked.set()
    self.num_judged += 1
    if problem.index == self.crashes_at:
      raise ZeroDivisionError(completion)
    if problem.index == self.hangs_at:
      time.sleep(30)
    is_right = zlib.crc32(completion.encode()) % 2
    status = Status.CORRECT if is_right else Status.WRONG
    return Verdict(float(is_right), completion, status)


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def policy():
  return networks.policy()


@pytest.fixture
def act(policy, mesh, monkeypatch):
  # In two waves: only four rows are sampled at once.
  monkeypatch.setattr(engine, "_STEPS", 1)

  def act(judges, **settings):
    worker = rollout_workers.make(
      policy,
      judges,
      mesh,
      group_size=GROUP_SIZE,
      max_prompt_length=40,
      max_completion_length=LENGTH,
      num_slots=4,
    )
    with jax.set_mesh(mesh):
      return worker(policy.params, PROBLEMS, jax.random.key(0), **settings)

  return act


def test_the_first_verdict_comes_before_the_last_token(act, policy):
  environment = CheckSum()
  tokens, asked = [0], []

  def report(num_tokens, num_done):
    del num_done
    if tokens[-1] > 4 * LENGTH:
      # A wave has ended, and the device has gone on since.
      assert environment.is_asked.wait(30)
      asked.append(num_tokens)
    tokens.append(num_tokens)

  experience = act(JudgePool(environment), report=report)
  rollout = experience.rollout
  assert asked[0] < tokens[-1] == experience.lengths.sum()
  texts = policy.texts(rollout.completion_ids, rollout.completion_mask)
  assert experience.completions == texts
  assert len(set(texts)) > 4
  in_turn = [
    environment.judge(PROBLEMS[row // GROUP_SIZE], text)
    for row, text in enumerate(texts)
  ]
  assert experience.verdicts == in_turn
  assert {verdict.status for verdict in in_turn} == {
    Status.CORRECT,
    Status.WRONG,
  }
  assert experience.judging_seconds >= 0
  assert experience.is_judged.all()


def test_a_judge_that_fails_costs_its_verdicts_alone(act):
  expected = act(JudgePool(CheckSum()))
  warnings = []
  judges = JudgePool(
    CheckSum(crashes_at=1, hangs_at=2),
    JudgingConfig(num_workers=4, seconds=0.3),
    warn=warnings.append,
  )
  experience = act(judges)
  crashed, late = slice(2, 4), slice(4, 6)
  assert [v.status for v in experience.verdicts[crashed]] == ["crashed"] * 2
  assert [v.status for v in experience.verdicts[late]] == ["timeout"] * 2
  for rows in (slice(0, 2), slice(6, 8)):
    assert experience.verdicts[rows] == expected.verdicts[rows]
  np.testing.assert_array_equal(experience.rewards[1:3], 0)
  np.testing.assert_array_equal(experience.is_judged, [1, 1, 0, 0, 1, 1, 1, 1])
  assert experience.judging_seconds > 0.1
  assert len(warnings) == 2


def test_a_rollout_that_fails_judges_no_more(act):
  environment = CheckSum(hangs_at=0)

  def report(num_tokens, num_done):
    del num_tokens
    if num_done > 4:
      environment.is_asked.wait(10)  # on a busy machine its thread comes late
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    act(JudgePool(environment, JudgingConfig(num_workers=1)), report=report)
  assert environment.num_judged == 1
