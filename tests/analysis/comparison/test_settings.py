"""What a comparison may be asked, and what it says to a mistake."""

import pathlib

import pytest

from distil_jax import config as configs
from distil_jax.analysis.comparison.settings import Comparison
from tests.paths import ROOT

SHIPPED = sorted((ROOT / "configs/comparison").glob("*.yaml"))
TEXT = """
default: grpo
families: {sparse: {}, early: {}}
arms:
  grpo: {objective: {kind: grpo}}
  sdpo: {objective: {kind: sdpo}}
"""


def load(tmp_path, *overrides, text=TEXT):
  path = tmp_path / "trial.yaml"
  path.write_text(text)
  return configs.load_as(Comparison, path, list(overrides))


def refusal(tmp_path, *overrides):
  with pytest.raises(configs.ConfigError) as error:
    load(tmp_path, *overrides)
  return str(error.value)


def test_full_and_smoke_are_shipped():
  assert {"full", "smoke"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_comparison_loads(path):
  comparison = configs.load_as(Comparison, path)
  assert comparison.directory == pathlib.Path("runs") / path.stem
  assert path.read_text().startswith("#"), "say command, hardware and time"


def test_smoke_arms_are_those_of_the_full_comparison():
  full, smoke = (
    configs.load_as(Comparison, ROOT / f"configs/comparison/{name}.yaml")
    for name in ("full", "smoke")
  )
  for name, arm in smoke.arms.items():
    assert arm.objective == full.arms[name].objective, name
    assert arm.teacher == full.arms[name].teacher, name


@pytest.mark.parametrize(
  ("override", "words"),
  [
    ("families.spars.num_steps=10", ["families.spars", "known: ['combined'"]),
    (
      "families.sparse.evaluate_every=30",
      ["families.sparse", "evaluate_every=30", "num_steps=100"],
    ),
    ("families.sparse.arms=[gpro]", ["families.sparse.arms", "gpro", "grpo"]),
    ("default=best", ["default", "best", "['grpo', 'sdpo']"]),
    ("arms.sdpo.like=gpro", ["arms.sdpo.like", "gpro"]),
    ("arms.sdpo.families=[rare]", ["arms.sdpo.families", "rare", "sparse"]),
    ("seedz=3", ["seedz", "did you mean seeds"]),
    ("families.sparse.num_step=3", ["num_step", "did you mean num_steps"]),
    (
      "families.sparse.network.widht=3",
      ["families.sparse.network.widht", "did you mean width"],
    ),
    ("arms.grpo.objectiv=1", ["arms.grpo.objectiv", "did you mean objective"]),
    (
      "arms.grpo.objective.clip_lo=1",
      ["arms.grpo.objective.clip_lo", "did you mean clip_low"],
    ),
    ("learning_rates=[0]", ["learning_rates", "greater than 0"]),
    ("seeds=0", ["seeds", "got 0"]),
    ("learning_rates=[]", ["learning_rates", "at least 1"]),
    ("arms.grpo.learning_rates=[]", ["arms.grpo.learning_rates", "at least 1"]),
    ("pass_at=[]", ["pass_at", "at least 1"]),
    (
      "arms.grpo.mini_batches=3",
      ["arms.grpo: mini_batches=3", "families.sparse.num_problems=16"],
    ),
    # A sixteenth of 128 sequences, but half of a group.
    ("arms.grpo.mini_batches=32", ["arms.grpo: mini_batches=32"]),
    (
      "arms.grpo.teacher={parameters: ema, guard: {}}",
      ["arms.grpo: teacher.guard is set", "teacher.guard=null"],
    ),
    (
      "families.sums={config: x.yaml, group_size: 4, base_steps: 5}",
      [
        "families.sums: base_steps, group_size cannot be set beside config=",
        "drop",
      ],
    ),
    (
      "figures={a/b: {families: [early], arms: [grpo], measures: [avg]}}",
      ["figures.a/b", "letters"],
    ),
    (
      "figures.a={families: [], arms: [grpo], measures: [avg]}",
      ["figures.a.families", "at least 1"],
    ),
    (
      "figures.a={families: [early], arms: [], measures: [avg]}",
      ["figures.a.arms", "at least 1"],
    ),
    (
      "figures.a={families: [early], arms: [grpo], measures: []}",
      ["figures.a.measures", "at least 1"],
    ),
  ],
)
def test_mistakes_name_place_and_cure(tmp_path, override, words):
  message = refusal(tmp_path, override)
  for word in words:
    assert word in message


def test_what_does_not_run_need_not_fit(tmp_path):
  made = load(
    tmp_path,
    "arms.sdpo.mini_batches=3",
    "arms.sdpo.families=[early]",
    "families.early.num_problems=6",
  )
  assert made.runs("early", "sdpo")
  assert made.arms["sdpo"].teacher.parameters == "frozen"


def test_like_needs_an_arm_that_chooses(tmp_path):
  message = refusal(
    tmp_path,
    "arms.a={objective: {kind: grpo}, like: grpo}",
    "arms.b={objective: {kind: grpo}, like: a}",
  )
  assert "arms.b.like=a" in message
  assert "like another" in message


def test_like_leaves_no_rates_of_its_own(tmp_path):
  message = refusal(
    tmp_path, "arms.sdpo.like=grpo", "arms.sdpo.learning_rates=[1e-3]"
  )
  assert "arms.sdpo" in message
  assert "learning_rates" in message


def test_grids_go_from_the_particular_to_the_general(tmp_path):
  comparison = load(
    tmp_path,
    "learning_rates=[1e-3, 2e-3]",
    "families.early.learning_rates=[3e-3]",
    "arms.sdpo.learning_rates=[4e-3]",
    "tuning_seeds=3",
    "families.early.tuning_seeds=1",
  )
  assert comparison.learning_rates_of("sparse", "grpo") == (1e-3, 2e-3)
  assert comparison.learning_rates_of("early", "grpo") == (3e-3,)
  assert comparison.learning_rates_of("early", "sdpo") == (4e-3,)
  assert comparison.tuning_seeds_of("sparse") == 3
  assert comparison.tuning_seeds_of("early") == 1


def test_a_family_with_a_config_may_have_any_name(tmp_path):
  comparison = load(
    tmp_path, "families.calculator.config=configs/calculator/quickstart.yaml"
  )
  assert comparison.families["calculator"].num_steps == 100
