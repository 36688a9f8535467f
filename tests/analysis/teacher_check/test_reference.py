"""The plain formulas against numbers by hand and against the objectives'."""

import functools

import numpy as np
import pytest

from distil_jax import config as configs
from distil_jax.analysis.teacher_check import expected, reference
from distil_jax.analysis.teacher_check.reference import Credit, Formula
from distil_jax.objectives.sdpo import SDPOSettings
from distil_jax.ops import divergences

STUDENT = np.log([[0.5, 0.25, 0.25]])
TEACHER = np.log([[0.8, 0.1, 0.1]])


@pytest.mark.parametrize(
  ("name", "cost"),
  [
    ("forward cross-entropy", 0.8 * np.log(2) + 0.2 * np.log(4)),
    ("forward KL", 0.8 * np.log(1.6) + 0.2 * np.log(0.4)),
    ("reverse KL", 0.5 * np.log(0.625) + 0.5 * np.log(2.5)),
  ],
)
def test_costs_by_hand(name, cost):
  found = reference.costs(STUDENT, TEACHER, Formula(name))
  np.testing.assert_allclose(found, [cost], rtol=1e-12)


def test_a_tail_is_one_more_token():
  whole = reference.costs(STUDENT, TEACHER, Formula("forward KL", top_k=1))
  by_hand = 0.8 * np.log(1.6) + 0.2 * np.log(0.4)
  np.testing.assert_allclose(whole, [by_hand], rtol=1e-12)


def test_lists_by_hand():
  ids = np.asarray([[0, 1]])
  found = reference.sampled_costs(STUDENT, ids)
  np.testing.assert_allclose(found, [(np.log(2) + np.log(4)) / 2])
  listed = functools.partial(
    reference.listed, STUDENT, ids, np.log([[0.8, 0.1]])
  )
  formula = Formula("forward cross-entropy")
  with_tail = reference.compared(*listed(formula), formula)
  np.testing.assert_allclose(with_tail, [0.8 * np.log(2) + 0.2 * np.log(4)])
  formula = Formula("reverse KL")
  with_tail = reference.compared(*listed(formula), formula)
  by_hand = 0.5 * np.log(0.625) + 0.5 * np.log(2.5)
  np.testing.assert_allclose(with_tail, [by_hand])
  formula = Formula("forward cross-entropy", tail=False)
  alone = reference.compared(*listed(formula), formula)
  by_hand = -(8 * np.log(2 / 3) + np.log(1 / 3)) / 9
  np.testing.assert_allclose(alone, [by_hand], rtol=1e-12)
  formula = Formula("reverse KL", tail=False, temperature=0.5)
  # Squares of (2, 1) and of (8, 1), renormalised.
  by_hand = 0.8 * np.log(0.8 * 65 / 64) + 0.2 * np.log(0.2 * 65)
  hot = reference.compared(*listed(formula), formula)
  np.testing.assert_allclose(hot, [by_hand], rtol=1e-12)


def test_the_temperature_of_distil_is_in_both_formulas():
  section = configs.DistilConfig(temperature=0.7, local_cost="reverse_kl")
  assert expected.local_formula(section) == Formula(
    "reverse KL", temperature=0.7
  )
  assert expected.carried_formula(section) == Formula(
    "forward KL", temperature=0.7
  )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
  ("top_k", "tail"), [(None, True), (4, True), (4, False)]
)
def test_the_family_agrees_with_the_objective(alpha, top_k, tail):
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 5, 9)).astype(np.float32)
  settings = SDPOSettings(alpha=alpha, top_k=top_k, tail=tail)
  right = divergences.cost(
    *divergences.log_probs_on_support(student, teacher, settings.divergence),
    settings.divergence,
  )
  section = configs.SDPOConfig(alpha=alpha, top_k=top_k, tail=tail)
  formula = expected.local_formula(section)
  found = reference.costs(student, teacher, formula)
  np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)


def test_future_costs_by_hand():
  costs = np.asarray([[1.0, 2.0, 4.0, 9.0]])
  mask = np.asarray([[True, False, True, True]])
  plain = reference.future_costs(costs, mask, discount=0.5, normalize=False)
  np.testing.assert_allclose(plain, [[8.5, 8.5, 9.0, 0.0]])
  mean = reference.future_costs(costs, mask, discount=1.0, normalize=True)
  np.testing.assert_allclose(mean, [[6.5, 6.5, 9.0, 0.0]])


def test_weights_by_hand():
  costs = np.asarray([[1.0, 2.0, 3.0], [5.0, 7.0, 0.0]])
  mask = np.asarray([[True, True, True], [True, True, False]])
  future, weights = reference.credit(
    costs,
    mask,
    Credit(
      2.0,
      normalize=False,
      group_size=2,
      baseline="leave_one_out",
      terminal_neutral=True,
    ),
  )
  np.testing.assert_allclose(future, [[5, 3, 0], [7, 0, 0]])
  # The second sequence is at its last token in the second column, which gets
  # no credit and is in nobody's baseline.
  np.testing.assert_allclose(weights, [[-4, 6, 0], [4, 0, 0]])
  _, weights = reference.credit(
    costs,
    mask,
    Credit(
      1.0,
      normalize=False,
      group_size=2,
      baseline="batch_mean",
      differential=True,
    ),
  )
  # Costs count from their mean, 3.6.
  np.testing.assert_allclose(
    weights, [[-2.8, -0.3, 0], [2.8, 0.3, 0]], atol=1e-12
  )
