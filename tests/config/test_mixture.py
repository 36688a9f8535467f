"""What a mixture of data sets is refused for, with the cure."""

import copy

import pytest

from distil_jax import config

SUMS = {"environment": {"kind": "calculator"}}


def changed(path, value):
  """Returns settings of a mixture of two sets, one of which is changed."""
  tree = {"mixture": {name: copy.deepcopy(SUMS) for name in ("short", "long")}}
  *parents, leaf = path.split("/")
  section = tree
  for name in parents:
    section = section.setdefault(name, {})
  section[leaf] = value
  return tree


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    ("mixture/my set", SUMS, "is named 'my set'.* use letters, digits"),
    ("mixture/a.b", SUMS, r"is named 'a\.b'"),
    ("mixture/-a", SUMS, "is named '-a'"),
    ("mixture", {2024: SUMS}, "is named 2024.* in quotes if it is a number"),
    ("mixture/tools", SUMS, r"mixture\.tools: .*choose another name"),
    ("mixture/short/weight", -1, r"mixture\.short\.weight: .*got -1"),
    ("mixture/short/weight", float("nan"), r"mixture\.short\.weight: "),
    ("mixture/short/wieght", 1, r"did you mean weight\?"),
    ("mixture/short", {"weight": 0.5}, r"short\.environment: Field required"),
    ("mixture/short", None, r"mixture\.short: "),
    ("mixture", [SUMS], "mixture: "),
    ("mixture", {"a": SUMS | {"weight": 0}}, "every weight is 0"),
    ("mixture", {"a": SUMS | {"loss_weight": 0}}, "every loss_weight of what"),
    (
      "mixture",
      {"a": SUMS | {"loss_weight": 0}, "b": SUMS | {"weight": 0}},
      "every loss_weight of what",
    ),
    ("mixture", {"a": SUMS | {"evaluation": None}}, "every evaluation is null"),
    (
      "mixture/short/evaluation",
      {"num_samples": 1, "pass_at": [4]},
      r"mixture\.short\.evaluation: pass_at has k=4, but num_samples=1",
    ),
    (
      "mixture/short/max_completion_length",
      999,
      "is more than rollout.max_completion_length=128",
    ),
    ("data", {"train": "a.jsonl"}, r"move data into mixture\.NAME\.data"),
    ("environment", {"kind": "math"}, "move environment into"),
    ("rollout/refill", {"max_rounds": 0}, r"refill\.max_rounds: .*got 0"),
    ("mixture/short/environment/kind", "math", "math makes no problems"),
    ("mixture/short/teacher", "x", r"teacher\.models is empty"),
  ],
)
def test_a_mixture_that_cannot_be_trained_on_is_refused(path, value, said):
  with pytest.raises(config.ConfigError, match=said):
    config.parse(changed(path, value))


def test_a_set_without_weight_in_the_loss_may_be_among_others():
  tree = changed("mixture/short/loss_weight", 0)
  assert config.parse(tree).mixture["short"].loss_weight == 0
