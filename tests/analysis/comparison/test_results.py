"""Means, standard errors, gaps, ties and places, by hand."""

import math

import pytest

from distil_jax.analysis.comparison import results, statistics, tables
from distil_jax.analysis.comparison.statistics import Cell
from tests.analysis.comparison import made_up


def test_mean_and_standard_error():
  records = [*made_up.trials("sparse", "grpo", [0.2, 0.4, 0.9]).values()]
  found = statistics.cell(records, statistics.final_accuracy)
  # Deviations -.3, -.1, .4: variance .26 / 2 = .13.
  assert found.mean == pytest.approx(0.5)
  assert found.error == pytest.approx(math.sqrt(0.13 / 3))
  assert (found.num_seeds, found.learning_rate) == (3, made_up.RATE)
  found = statistics.cell(records, statistics.mean_accuracy)
  assert found.mean == pytest.approx(0.25)


def test_one_seed_has_no_error():
  one = [*made_up.trials("sparse", "grpo", [0.2]).values()]
  assert math.isnan(statistics.cell(one, statistics.final_accuracy).error)


def test_tied_is_within_an_error_of_the_difference():
  first = Cell(0.9, 0.03, 5, made_up.RATE)
  # The error of the difference is .05.
  assert statistics.is_tied(Cell(0.851, 0.04, 5, made_up.RATE), first)
  assert not statistics.is_tied(Cell(0.849, 0.04, 5, made_up.RATE), first)
  assert statistics.is_tied(first, first)
  alone = Cell(0.9, math.nan, 1, made_up.RATE)
  assert statistics.is_tied(alone, alone)
  assert not statistics.is_tied(Cell(0.899, 0.04, 5, made_up.RATE), alone)


def test_only_reported_seeds_at_the_chosen_rate_count():
  done = made_up.trials("sparse", "grpo", [0.1, 0.2])
  done |= made_up.trials("sparse", "grpo", [0.9], rate=2e-3)
  done |= made_up.trials("sparse", "grpo", [0.8], first=1000)
  done |= made_up.trials("sparse", "mine", [0.7]) | made_up.trials(
    "early", "grpo", [0.6]
  )
  records = results.reported(made_up.comparison(), done, "sparse", "grpo")
  assert [statistics.final_accuracy(r) for r in records] == [0.1, 0.2]


def test_a_gap_is_of_seeds_that_both_have():
  own = [*made_up.trials("sparse", "mine", [0.5, 0.7, 0.9]).values()]
  other = [*made_up.trials("sparse", "grpo", [0.4, 0.4], first=1).values()]
  # Seeds 1 and 2: .3 and .5.
  mean, error = statistics.gap(own, other, statistics.final_accuracy)
  assert mean == pytest.approx(0.4)
  assert error == pytest.approx(0.1)
  mean, error = statistics.gap(own[:2], other, statistics.final_accuracy)
  assert mean == pytest.approx(0.3)
  assert math.isnan(error)
  assert statistics.gap(own[:1], other, statistics.final_accuracy) is None


def test_rollouts_of_a_trial():
  (record,) = made_up.trials("sparse", "grpo", [0.5]).values()
  assert statistics.num_rollouts(record) == 2 * 8


def test_places():
  better, good, near, far = (
    Cell(mean, 0.03, 5, 1e-3) for mean in (0.91, 0.9, 0.87, 0.86)
  )
  assert statistics.rank(better, [far, good]) == "first"
  assert statistics.rank(good, [far, good]) == "tied"
  assert statistics.rank(near, [far, good]) == "tied"
  assert statistics.rank(far, [good, far]) == "tied"  # .04 of .042
  assert statistics.rank(far, [better, good]) == "behind"


def test_places_of_the_default_among_those_that_choose():
  done = made_up.trials("sparse", "mine", [0.5, 0.5])
  done |= made_up.trials("sparse", "grpo", [0.4, 0.4])
  done |= made_up.trials("sparse", "less", [0.9, 0.9])
  done |= made_up.trials("early", "mine", [0.5])
  made = made_up.comparison()
  found = results.collect(made, done)
  assert tables.default_ranks(made, found) == {"sparse": "first"}


def test_a_seed_counts_once_when_the_number_of_bases_changed():
  done = made_up.trials("sparse", "grpo", [0.1, 0.2])  # on bases 0 and 1
  made = made_up.comparison(num_bases=1)
  records = results.reported(made, done, "sparse", "grpo")
  assert [record["seed"] for record in records] == [0]
  (own,), (other,) = (
    made_up.trials("sparse", arm, [0.5]).values() for arm in ("mine", "grpo")
  )
  other["base"] = 1
  assert statistics.gap([own], [other], statistics.final_accuracy) is None
