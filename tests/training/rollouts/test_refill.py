"""Groups without signal are found, and further problems take their places."""

import jax
import numpy as np
import pytest

from distil_jax import config
from distil_jax.generation.usage import Usage
from distil_jax.training import teaching
from distil_jax.training.rollouts import refill
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.setup import workers
from distil_jax.types import Problem, Rollout, Status, Verdict

G = 2
T = 3


def problem(index):
  message = {"role": "user", "content": f"question {index}"}
  return Problem(index, (message,), "")


def experience(problems, rewards, feedback=None, status=None):
  """One whose arrays hold the problem's index, and the row's member."""
  rewards = np.asarray(rewards, float).reshape(-1)
  rows = [p.index * 10 + g for p in problems for g in range(G)]
  tokens = np.repeat(np.asarray(rows, np.int32)[:, None], T, axis=1)
  prompts = np.asarray([[p.index] for p in problems], np.int32)
  verdicts = []
  for i, reward in enumerate(rewards):
    usual = Status.CORRECT if reward == 1 else Status.WRONG
    text = feedback[i] if feedback and usual != Status.CORRECT else ""
    verdicts.append(Verdict(reward, text, status[i] if status else usual))
  return Experience(
    problems=problems,
    group_size=G,
    rollout=Rollout(
      prompt_ids=prompts,
      prompt_mask=np.ones_like(prompts),
      completion_ids=tokens,
      completion_mask=np.ones_like(tokens),
      log_probs=tokens.astype(np.float32),
      behavior_log_probs=tokens.astype(np.float32),
      stop_reasons=tokens[:, 0],
    ),
    completions=[f"completion {row}" for row in rows],
    verdicts=verdicts,
    usage=Usage(len(rows) * T, T, len(rows) * T, 7, 1),
    judging_seconds=1.0,
  )


def rule(objective, **teacher):
  section = config.parse(
    {
      "objective": objective,
      "teacher": teacher,
      "rollout": {"group_size": G, "refill": {}},
    }
  )
  settings = None
  if section.objective.needs_teacher:
    settings = teaching.TeacherSettings(
      solution=section.teacher.solution,
      feedback=section.teacher.feedback,
      success_threshold=section.teacher.success_threshold,
      max_prompt_length=100,
    )
  built = workers.build_refill(section, settings)
  assert built is not None
  return built.has_signal_fn


CRASHED = [Status.CRASHED, Status.WRONG] * 3


@pytest.mark.parametrize(
  ("objective", "teacher", "feedback", "status", "expected"),
  [
    # All wrong, one right, all right.
    ({"kind": "grpo"}, {}, None, None, [0, 1, 0]),
    ({"kind": "sdpo"}, {}, None, None, [0, 1, 1]),
    ({"kind": "sdpo"}, {}, "abcdef", None, [1, 1, 1]),
    ({"kind": "sdpo"}, {"solution": "none"}, "abcdef", None, [1, 1, 0]),
    ({"kind": "sdpo"}, {"feedback": "never"}, "abcdef", None, [0, 1, 1]),
    # By default feedback weighs nothing where all others succeed.
    ({"kind": "distil"}, {}, None, None, [0, 1, 0]),
    ({"kind": "distil"}, {}, "abcdef", None, [1, 1, 0]),
    # The right one has a sibling that fails, but there is no solution for it.
    (
      {"kind": "distil", "reward_weight": 0},
      {"solution": "none"},
      None,
      None,
      [0, 0, 0],
    ),
    # Of the first member of each group nothing is known.
    ({"kind": "grpo"}, {}, None, CRASHED, [0, 0, 0]),
    ({"kind": "sdpo"}, {}, "abcdef", CRASHED, [1, 0, 1]),
  ],
)
def test_a_group_has_a_signal_if_the_objective_can_learn_from_it(
  objective, teacher, feedback, status, expected
):
  problems = [problem(i) for i in range(3)]
  rewards = [[0, 0], [0, 1], [1, 1]]
  found = rule(objective, **teacher)(
    experience(problems, rewards, feedback, status)
  )
  assert found.tolist() == [bool(x) for x in expected]


def has_signal(found):
  return found.rewards[:, 0] != found.rewards[:, 1]


def run(first, later, max_rounds=3, num_left=100):
  """Refills groups; `later` has the rewards of further problems in order."""
  rounds, stream = [], iter(range(len(first), len(first) + num_left))
  given = dict(enumerate(later, start=len(first)))

  def draw(counts):
    problems = [problem(i) for _, i in zip(range(sum(counts)), stream)]  # noqa: B905
    return problems if len(problems) == sum(counts) else None

  def sample(problems, number, num_real):
    rounds.append((number, [p.index for p in problems], num_real))
    rewards = [given.get(p.index, [0, 0]) for p in problems]
    return experience(problems, rewards)

  start = experience([problem(i) for i in range(len(first))], first)
  return refill.Refill(has_signal, max_rounds)(start, sample, draw), rounds


def test_further_problems_take_the_places_of_groups_without_signal():
  first = [[0, 0], [0, 1], [1, 1], [1, 0]]
  found, rounds = run(first, [[1, 1], [0, 1], [1, 0]])
  # Problems 4 and 5 replace 0 and 2, then 6 replaces 4. Problem 0, and then 5,
  # which is the first one, stand in.
  assert rounds == [(1, [4, 5, 0, 0], 2), (2, [6, 4, 4, 4], 1)]
  assert [p.index for p in found.problems] == [6, 1, 5, 3]
  assert found.rewards.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]
  rows = [60, 61, 10, 11, 50, 51, 30, 31]
  assert found.completions == [f"completion {row}" for row in rows]
  for name in ("completion_ids", "log_probs", "behavior_log_probs"):
    assert getattr(found.rollout, name)[:, 0].tolist() == rows, name
  assert found.rollout.prompt_ids[:, 0].tolist() == [6, 1, 5, 3]
  assert found.refills == {
    "groups/refilled": 3,
    "groups/refill_rounds": 2,
    "groups/without_signal": 0,
  }
  # Three rollouts of 8 rows; five groups of stand-ins count for nothing.
  assert found.usage is not None
  assert found.usage.num_tokens == 3 * 8 * T - 5 * G
  assert found.judging_seconds == 3


def test_rounds_are_bounded_and_what_is_left_stays():
  found, rounds = run([[0, 0], [0, 1]], [], max_rounds=2)
  assert [problems[0] for _, problems, _ in rounds] == [2, 3]
  assert [p.index for p in found.problems] == [3, 1]
  assert found.refills is not None
  assert found.refills["groups/without_signal"] == 1


def test_a_full_step_and_data_at_their_end_need_no_round():
  for first, num_left, num_without in (([[0, 1]], 9, 0), ([[0, 0]], 0, 1)):
    found, rounds = run(first, [], num_left=num_left)
    assert not rounds
    assert found.refills == {
      "groups/refilled": 0,
      "groups/refill_rounds": 0,
      "groups/without_signal": num_without,
    }


def test_each_round_has_keys_of_its_own_and_one_shape():
  calls = []

  def worker(params, problems, key, *, report, max_lengths):
    del params, report
    calls.append((len(problems), jax.random.key_data(key).tolist()))
    limits.append(None if max_lengths is None else max_lengths.tolist())
    return experience(problems, [[0, 0]] * len(problems))

  limits = []
  settings = config.parse(
    {"rollout": {"max_completion_length": T, "refill": {"max_rounds": 2}}}
  )
  found = refill.sample_step(
    worker,
    None,
    [problem(0), problem(1)],
    jax.random.key(0),
    make_report=lambda: None,
    limit_fn=lambda *given: workers.completion_limits(settings, *given),
    refill=refill.Refill(
      lambda x: np.asarray([p.index != 1 for p in x.problems]), 2
    ),
    draw=lambda counts: [problem(1)] * sum(counts),
  )
  assert [size for size, _ in calls] == [2, 2, 2]
  # The same problem, drawn again, gets other samples.
  assert len({str(key) for _, key in calls}) == 3
  assert limits == [[T, T], [T, 1], [T, 1]]
  assert found.refills is not None
  assert found.refills["groups/without_signal"] == 1
