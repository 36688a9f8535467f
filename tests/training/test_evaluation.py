"""Held-out accuracy, counted with a real network and a known judge."""

import dataclasses
import itertools
import zlib

import jax
import pytest

from distil_jax.config.environments import JudgingConfig
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.models import sharding
from distil_jax.training import evaluation
from distil_jax.types import Problem, Status, Verdict
from tests import networks, rollout_workers

NUM_SAMPLES = 4
NUM_PROBLEMS = 11  # the batches below have 8 and 16


@dataclasses.dataclass
class Judge:
  """Rewards by a check sum of the text, so that about half are right."""

  seen: list[tuple[int, str]] = dataclasses.field(default_factory=list)

  def problem(self, row, index=0):
    raise NotImplementedError("these problems come from no file")

  def judge(self, problem, completion):
    self.seen.append((problem.index, completion))
    is_right = zlib.crc32(completion.encode()) % 2
    status = Status.CORRECT if is_right else Status.WRONG
    return Verdict(float(is_right), "", status)


PROBLEMS = [
  Problem(
    index=i, messages=({"role": "user", "content": f"What is {i}?"},), answer=""
  )
  for i in range(NUM_PROBLEMS)
]


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh()


@pytest.fixture(scope="module")
def judge():
  return Judge()


@pytest.fixture(scope="module")
def policy(mesh):
  return networks.policy(mesh)


@pytest.fixture(scope="module")
def worker(policy, judge, mesh):
  return rollout_workers.make(
    policy,
    JudgePool(
      judge, JudgingConfig(num_workers=1)
    ),  # in the order in which they end
    mesh,
    group_size=NUM_SAMPLES,
    max_prompt_length=40,
    max_completion_length=5,
  )


@pytest.fixture(scope="module")
def measure(worker, policy, judge, mesh):
  def measure(problems=PROBLEMS, key=0, num_problems=8, **settings):
    judge.seen.clear()
    with jax.set_mesh(mesh):
      return evaluation.evaluate(
        worker,
        policy.params,
        problems,
        jax.random.key(key),
        num_problems=num_problems,
        **{"pass_at": (1, 2, 4), "success_threshold": 1.0} | settings,
      )

  return measure


def by_hand(seen, k):
  """pass@k by listing every choice of k samples; k=1 is the mean reward."""
  total = 0.0
  for problem in PROBLEMS:
    texts = [text for index, text in seen if index == problem.index]
    # Where a problem fills up the last batch its later samples do not count.
    rights = [zlib.crc32(t.encode()) % 2 for t in texts[:NUM_SAMPLES]]
    choices = list(itertools.combinations(rights, k))
    total += sum(any(choice) for choice in choices) / len(choices)
  return total / len(PROBLEMS)


def test_numbers_are_those_of_the_real_samples_alone(measure, judge):
  values = measure()
  assert len(judge.seen) == 16 * NUM_SAMPLES  # two batches, the last filled up
  assert values["avg@4"] == pytest.approx(by_hand(judge.seen, 1))
  for k in (1, 2, 4):
    assert values[f"pass@{k}"] == pytest.approx(by_hand(judge.seen, k))
  assert 0 < values["avg@4"] < values["pass@2"] < values["pass@4"]
  assert values["verdict/correct"] == pytest.approx(values["avg@4"])
  shares = values["verdict/correct"] + values["verdict/wrong"]
  assert shares == pytest.approx(1)
  assert 0 < values["completion_length"] <= 5
  assert 0 <= values["cut_off"] <= 1


def test_size_of_the_batch_changes_nothing(measure):
  assert measure(num_problems=8) == measure(num_problems=16)


def test_order_of_the_problems_changes_nothing(measure):
  assert measure() == pytest.approx(measure(PROBLEMS[::-1]))


def test_same_key_same_numbers_other_key_others(measure, judge):
  first = measure(key=1)
  texts = list(judge.seen)
  assert measure(key=1) == first
  assert judge.seen == texts
  measure(key=2)
  assert judge.seen != texts


def test_threshold_decides_what_passes(measure):
  strict = measure(success_threshold=1.0, pass_at=(1,))
  assert strict["pass@1"] < 1
  mild = measure(success_threshold=0.0, pass_at=(1,))
  assert mild["pass@1"] == 1
  assert mild["avg@4"] == strict["avg@4"]


def test_progress_counts_real_problems(measure):
  done = []
  measure(report=done.append)
  assert done == [8, 11]


@pytest.mark.parametrize(
  ("num_correct", "k", "expected"),
  [
    (0, 1, 0.0),
    (1, 1, 1 / 4),
    (1, 2, 1 / 2),
    (2, 2, 5 / 6),
    (3, 2, 1.0),
    (1, 4, 1.0),
    (0, 4, 0.0),
  ],
)
def test_pass_at_k_by_hand(num_correct, k, expected):
  assert evaluation.pass_at_k(4, num_correct, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_what_it_cannot_estimate(k):
  with pytest.raises(ValueError, match=f"k={k} must be in"):
    evaluation.pass_at_k(4, 1, k)
