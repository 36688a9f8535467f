"""When a run has collapsed, and what was seen before."""

import pytest

from distil_jax.analysis.comparison import collapse, report, results
from distil_jax.analysis.comparison.collapse import SIGNS, Sign
from tests.analysis.comparison.made_up import comparison, rows, trials

TEACHER, ENTROPY, LENGTH, P_EOS = SIGNS


def curve(**measures):
  """A point every ten steps; None for a measure that a point lacks."""
  names, columns = list(measures), list(zip(*measures.values(), strict=True))
  return [
    {"step": 10 * i}
    | {n: v for n, v in zip(names, values, strict=True) if v is not None}
    for i, values in enumerate(columns, start=1)
  ]


@pytest.mark.parametrize(
  ("avg", "step"),
  [
    ([0.1, 0.5, 0.9], None),
    ([0.1, 0.9, 0.81], None),
    ([0.1, 0.9, 0.79], 30),
    ([0.9, 0.5, 0.9, 0.2, 0.1], 40),  # from a dip it came back
    ([0.9, 0.5, 0.2, 0.1], 20),
    ([0.0, 0.0], None),
    ([0.0, 0.09, 0.0], None),  # it never rose
    ([0.3], None),
  ],
)
def test_accuracy_fell_where_it_stays_below_its_best(avg, step):
  assert collapse.collapse_step(curve(avg=avg)) == step


@pytest.mark.parametrize(
  ("sign", "values", "step"),
  [
    (TEACHER, [0.98, 0.9, 0.87], 30),
    (TEACHER, [0.5, 0.98, 0.9], None),  # the highest so far, not the first
    (TEACHER, [0.98, 0.2, 0.98], 20),  # lasting or not
    (TEACHER, [None, 0.9, None, 0.7], 40),
    (TEACHER, [None, None], None),
    (ENTROPY, [1.8, 0.5, 0.55], None),
    (ENTROPY, [1.8, 0.5, 0.65], 30),
    (ENTROPY, [1.8, 0.9, 0.1], None),  # sharper is no sign
    (LENGTH, [8.0, 7.3, 7.1], 30),
    (LENGTH, [80.0, 73.0, 71.0], 30),  # by a share
    (LENGTH, [4.0, 8.0], None),
    (P_EOS, [0.0, 0.04, 0.06], 30),
  ],
)
def test_a_sign_is_seen_past_its_limit(sign, values, step):
  points = curve(**{sign.measure: values})
  assert collapse.warning_step(points, sign) == step


def test_a_label_says_which_way_and_how_far():
  assert [sign.label for sign in SIGNS] == [
    "teacher −0.1",
    "entropy +0.1",
    "length −10%",
    "p_eos +0.05",
  ]
  assert Sign("length", 0.25, rises=True, is_share=True).label == "length +25%"


def test_the_table_has_seeds_in_order_and_no_quiet_arms():
  made = comparison()
  done = trials("sparse", "grpo", [0.9, 0.2])
  done |= trials("sparse", "mine", [0.9, 0.9])
  for trial, record in done.items():
    if trial.arm == "grpo" and trial.seed == 1:
      record["curve"] = curve(
        avg=[0.1, 0.95, 0.9, 0.2], length=[8.0, 8.0, 4.0, 2.0]
      )
    else:
      record["curve"] = curve(avg=[0.1, 0.9], length=[8.0, 8.0])
  backwards = dict(reversed(done.items()))
  found = results.collect(made, backwards)
  shown = collapse.table(made, found)
  signs = ["–, –", "–, –", "–, 30", "–, –"]
  assert rows(shown) == {
    "family": [
      "arm",
      "best, %",
      "end, %",
      "accuracy fell",
      *(sign.label for sign in SIGNS),
    ],
    "sparse": ["grpo", "90, 95", "90, 20", "–, 40", *signs],
  }
  assert "What falls again" in report.report(made, backwards)


def test_nothing_is_said_where_nothing_falls():
  made = comparison()
  done = trials("sparse", "grpo", [0.9])
  for record in done.values():
    record["curve"] = curve(avg=[0.1, 0.9], length=[8.0, 8.0])
  assert collapse.table(made, results.collect(made, done)) is None
  assert "What falls again" not in report.report(made, done)


def test_without_a_teacher_its_accuracy_is_no_sign():
  made = comparison()
  done = trials("sparse", "grpo", [0.9]) | trials("sparse", "mine", [0.9])
  for record in done.values():
    record["curve"] = curve(avg=[0.9, 0.9], teacher=[0.98, 0.1])
  shown = collapse.table(made, results.collect(made, done))
  assert "mine" in shown
  assert "grpo" not in shown
