"""Settings explained in a terminal, and as a schema for editors."""

import jsonschema
import pytest
import yaml

from distil_jax import config
from distil_jax.cli import main
from distil_jax.config import describe, loading
from tests.paths import ROOT

RUNS = [
  path
  for path in sorted((ROOT / "configs").rglob("*.yaml"))
  if "comparison" not in path.parts
]


@pytest.fixture(scope="module")
def validator():
  schema = describe.json_schema()
  kind = jsonschema.validators.validator_for(schema)
  kind.check_schema(schema)
  return kind(schema)


def test_the_schema_accepts_every_config_of_the_repository(validator):
  assert len(RUNS) > 10
  for path in RUNS:
    tree = yaml.load(path.read_text(), Loader=loading._Loader)
    assert list(validator.iter_errors(tree)) == [], path


@pytest.mark.parametrize(
  "tree",
  [
    {"environment": {"kind": "my_module:Mine", "slack": 1}},
    {"objective": {"future_weight": 0}},  # the default kind has it
    {"x-common": {"anything": 1}, "tools": None},
  ],
)
def test_the_schema_accepts_what_the_loader_accepts(validator, tree):
  config.parse({k: x for k, x in tree.items() if not k.startswith("x-")})
  assert validator.is_valid(tree)


@pytest.mark.parametrize(
  "tree",
  [
    {"optimizer": {"lerning_rate": 1}},
    {"train": {"num_steps": 0}},
    {"environment": {"kind": "maths"}},
    {"unknown": {}},
  ],
)
def test_the_schema_refuses_what_the_loader_refuses(validator, tree):
  with pytest.raises(config.ConfigError):
    config.parse(tree)
  assert not validator.is_valid(tree)


@pytest.mark.parametrize(
  ("key", "said"),
  [
    (None, ("optimizer ", "one of adamw")),
    ("optimizer.learning_rate=1", ("type:    number > 0", "default: 1e-05")),
    ("optimizer.beta1", ("with:    optimizer.kind=adamw",)),
    ("objective", ("by its kind:", "objective.future_weight = ")),
    ("objective.kind", ("grpo:",)),
    ("model.lora.rank", ("Columns of A",)),
  ],
)
def test_settings_are_explained(key, said, capsys):
  assert main.main(["config", "--explain", *([key] if key else [])]) == 0
  shown = capsys.readouterr().out
  assert all(text in shown for text in said), shown


@pytest.mark.parametrize(
  ("key", "cure"),
  [
    ("learning_rate", "did you mean optimizer.learning_rate"),
    ("optimizer.lerning_rate", "did you mean optimizer.learning_rate?"),
    ("xyzzy", "the sections are model, data"),
  ],
)
def test_an_unknown_setting_is_told_the_nearest(key, cure, capsys):
  assert main.main(["config", "--explain", key]) == 1
  assert cure in capsys.readouterr().err


def test_a_config_is_printed_with_its_defaults(capsys):
  path = str(ROOT / "configs/calculator/quickstart.yaml")
  assert main.main(["config", path, "train.num_steps=7"]) == 0
  printed = yaml.safe_load(capsys.readouterr().out)
  assert config.parse(printed) == config.load(path, ["train.num_steps=7"])
