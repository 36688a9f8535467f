"""Problems, judgement and feedback of the comparison, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.analysis.comparison import builtin_families, problem_families
from distil_jax.analysis.comparison.problem_families import (
  ASK,
  EOS,
  HINT,
  PAD,
  ROUTES,
  Family,
  Problems,
  Route,
)

# One program in place of a program for each operation.
judge, reference_completion, base_targets = (
  jax.jit(function, static_argnames="family")
  for function in (
    problem_families.judge,
    problem_families.reference_completion,
    problem_families.base_targets,
  )
)
make_problems = jax.jit(
  problem_families.make_problems, static_argnames=("family", "num_problems")
)
CODE = [7, 4, 9, 0, 6, 2, 1, 8, 3, 5]
WORK, GUESS = ROUTES
TOTALS = Family(
  "q",
  num_digits=3,
  routes=(Route(("total",) * 3, 0.25, 0.9), Route(("sum",), 0.75, 0.1)),
  feedback="answer",
)
CODES = Family(
  "q",
  num_digits=2,
  routes=(
    Route(("filler", "code", "code"), 0.25, 0.1),
    Route(("fresh",), 0.75, 0.1),
  ),
  feedback="traces",
  checks_all=True,
)


def problems(digits, fresh=((0, 0, 0),)):
  return Problems(
    digits=jnp.asarray(digits),
    fresh=jnp.asarray(fresh),
    index=np.arange(len(digits), dtype=np.uint32),
  )


def judged(family, made, *tokens):
  rows = np.full((1, len(tokens), family.completion_length), PAD)
  mask = np.zeros_like(rows)
  for i, row in enumerate(tokens):
    rows[0, i, : len(row)] = row
    mask[0, i, : len(row)] = 1
  rewards = judge(family, made, jnp.asarray(rows), jnp.asarray(mask))
  return np.asarray(rewards)[0].tolist()


def test_totals_are_judged_by_their_end():
  made = problems([[7, 8, 9]])  # 7, 15, 24
  assert judged(
    TOTALS,
    made,
    [WORK, 7, 5, 4, EOS],
    [WORK, 1, 1, 4, EOS],  # the steps themselves do not count
    [WORK, 7, 5, 3, EOS],
    [GUESS, 4, EOS],
    [GUESS, 5, EOS],
    [GUESS, 7, 5, 4, EOS],  # the other route's steps
    [WORK, 7, 5, 4],  # no end
    [WORK, 7, 5, 4, 4],
    [WORK, 7, HINT, 4, EOS],  # no digit
    [4, EOS],
  ) == [1, 1, 0, 1, 0, 0, 0, 0, 0, 0]


def test_codes_are_judged_digit_by_digit():
  made = problems([[3, 0]], [[6, 1, 1]])
  assert judged(
    CODES,
    made,
    [WORK, 16, 0, 7, EOS],
    [WORK, 19, 0, 7, EOS],
    [WORK, 9, 0, 7, EOS],  # no filler
    [WORK, 16, 1, 7, EOS],
    [WORK, 16, 0, 8, EOS],
    [GUESS, 6, EOS],
    [GUESS, 1, EOS],
  ) == [1, 1, 0, 0, 0, 1, 0]


def test_code_has_no_fixed_point():
  assert sorted(CODE) == list(range(10))
  assert all(image != digit for digit, image in enumerate(CODE))


def test_teacher_prompt():
  made = problems([[3, 0]], [[6, 1, 1]])
  ids, mask = problem_families.teacher_prompts(
    made, *problem_families.hints(CODES, made)
  )
  # Filler, two digits of the code, the fresh digit; then the problem.
  assert ids.tolist() == [[HINT, 0, 0, 7, 6, 3, 0, ASK]]
  assert mask.tolist() == [[1] * 8]


def test_sibling_is_the_feedback_without_its_padding():
  family = builtin_families.FAMILIES["partial"]
  made = problems([[1, 2, 3, 4]], [[0, 0, 0, 0]])
  sibling = jnp.asarray([[GUESS, 0, EOS, PAD, PAD, PAD]])
  ids, mask = problem_families.teacher_prompts(
    made, *problem_families.hints(family, made, sibling)
  )
  assert np.asarray(ids)[0, 1:7].tolist() == [GUESS, 0, EOS, PAD, PAD, PAD]
  assert np.asarray(mask)[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", builtin_families.FAMILIES)
def test_reference_completions_are_right(name):
  family = builtin_families.FAMILIES[name]
  made = make_problems(family, jax.random.key(0), 16)
  for route in range(len(family.routes)):
    ids, mask = reference_completion(
      family, made, np.full(16, route), jax.random.key(1)
    )
    rewards = judge(
      family, made, np.asarray(ids)[:, None], np.asarray(mask)[:, None]
    )
    assert np.min(rewards) == 1, route


@pytest.mark.parametrize("name", builtin_families.FAMILIES)
def test_base_targets_are_distributions(name):
  family = builtin_families.FAMILIES[name]
  made = make_problems(family, jax.random.key(0), 16)
  route = np.arange(16) % len(family.routes)
  ids, mask = reference_completion(family, made, route, jax.random.key(1))
  for has_feedback in (True, False):
    targets = base_targets(
      family, made, route, ids, np.full(16, has_feedback), route
    )
    sums = np.sum(targets, axis=-1)
    np.testing.assert_allclose(sums[np.asarray(mask) > 0], 1.0, rtol=1e-5)
    # What is right must be possible.
    chances = np.take_along_axis(
      np.asarray(targets), np.asarray(ids)[..., None], axis=-1
    )[..., 0]
    assert chances[np.asarray(mask) > 0].min() > 0


def test_targets_without_and_with_feedback():
  made = problems([[7, 8, 9]])
  ids = jnp.asarray([[WORK, 2, 5, 4, EOS]])  # the first total is spoilt

  def targets(has_feedback):
    found = base_targets(
      TOTALS,
      made,
      jnp.asarray([0]),
      ids,
      jnp.asarray([has_feedback]),
      jnp.asarray([0]),
    )
    return np.asarray(found)[0]

  alone, informed = targets(False), targets(True)
  np.testing.assert_allclose(alone[0, list(ROUTES)], [0.25, 0.75])
  np.testing.assert_allclose(alone[1, 7], 0.9)
  np.testing.assert_allclose(alone[2, 0], 0.9)  # goes on from 2: 2 + 8
  np.testing.assert_allclose(alone[2, 1], 0.1 / 9, rtol=1e-5)
  np.testing.assert_allclose(
    informed[2], alone[2]
  )  # feedback has the end alone
  np.testing.assert_allclose(alone[3, 4], 0.9)  # 5 + 9
  np.testing.assert_allclose(informed[3, 4], 0.998)
  assert alone[4, EOS] == 1


def test_known_digits_of_the_code():
  family = builtin_families.FAMILIES["mixed"]
  made = problems([[4, 5, 0, 9, 1, 8]], [[0] * 6])
  route = jnp.asarray([0])
  ids, _ = reference_completion(family, made, route, jax.random.key(0))
  found = base_targets(family, made, route, ids, jnp.asarray([False]), route)
  chances = np.take_along_axis(
    np.asarray(found), np.asarray(ids)[..., None], axis=-1
  )[0, 1:7, 0]
  np.testing.assert_allclose(
    chances, [0.95, 0.1, 0.95, 0.1, 0.95, 0.1], rtol=1e-5
  )


def test_sibling_moves_the_teachers_choice():
  family = builtin_families.FAMILIES["partial"]
  made = problems([[1, 2, 3, 4]], [[0, 0, 0, 0]])
  route = jnp.asarray([0])
  ids, _ = reference_completion(family, made, route, jax.random.key(0))
  for sibling_route in (0, 1):
    found = base_targets(
      family,
      made,
      route,
      ids,
      jnp.asarray([True]),
      jnp.asarray([sibling_route]),
    )
    first = np.asarray(found)[0, 0]
    np.testing.assert_allclose(first[ROUTES[sibling_route]], 0.6, rtol=1e-6)
    np.testing.assert_allclose(first[ROUTES[1 - sibling_route]], 0.4, rtol=1e-6)
