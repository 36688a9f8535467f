"""Several teachers, of which each problem has one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax import config
from distil_jax.data import problems as data_problems
from distil_jax.data import training_stream
from distil_jax.data.data_files import DataError
from distil_jax.data.teacher_routing import TeacherRouting
from distil_jax.generation.policy import load_policy
from distil_jax.models import sharding
from distil_jax.objectives import teachers
from distil_jax.training import build_step, trainer
from distil_jax.training.setup import environments
from distil_jax.types import Problem
from tests import networks
from tests.networks import assert_close
from tests.training import test_teacher_models

pytestmark = pytest.mark.usefixtures("one_width")
NUM_TOKENS = 22
# Another model, and the student's own network.
NAMES = ("math", "own")


@pytest.fixture(scope="module")
def student():
  return networks.network(seed=3, num_layers=1, num_tokens=NUM_TOKENS)


@pytest.fixture(scope="module")
def other():
  """A network of another size."""
  return networks.network(seed=4, width=24, head_size=8, num_layers=1)


@pytest.fixture(scope="module")
def batch():
  made = networks.random_batch(seed=3, vocab_size=NUM_TOKENS)
  return made.replace(teacher_index=jnp.asarray([1, 1, 0, 0, 0, 0, 1, 1]))


def gradients(student, objective, network, section, **settings):
  made = build_step.gradients(
    objective,
    section,
    graphdef=student.graphdef,
    teacher_network=network,
    group_size=2,
    num_sequences=8,
    **settings,
  )
  return jax.jit(made)


def several(other):
  return (teachers.OtherNetwork(other.graphdef), None)


def section(**settings):
  models = {"math": {"directory": "math"}, "own": None}
  return config.TeacherConfig(models=models, **settings)


OBJECTIVES = {
  # A sequence that a run leaves out counts as 0 in these averages, so that
  # losses of runs with a teacher each can be added.
  "sdpo": (config.SDPOConfig(alpha=0.4, aggregation="sequence_mean"), {}),
  "lists": (
    config.MiniLLMConfig(aggregation="sequence_mean", chunk_size=2),
    {"access": "top_k", "top_k": 3},
  ),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_each_sequence_learns_as_with_its_teacher_alone(
  student, other, batch, kind
):
  objective, access = OBJECTIVES[kind]
  own = networks.random_params(student.params, seed=6)
  params, key = (other.params, own), jax.random.key(0)
  # Slices of two have one teacher each, and those of four have two.
  gradient, value, metrics = gradients(
    student,
    objective,
    several(other),
    section(**access),
    micro_batch_size=2 if kind == "sdpo" else 4,
  )(student.params, params, batch, key)
  alone = []
  for number, network in enumerate((other, student)):
    rows = (batch.teacher_index == number).astype(jnp.int32)
    learn = gradients(
      student,
      objective,
      teachers.OtherNetwork(network.graphdef),
      config.TeacherConfig(**access),
    )
    quiet = batch.replace(
      sample_mask=batch.sample_mask * rows, teacher_index=None
    )
    alone.append(learn(student.params, params[number], quiet, key))
    name = NAMES[number]
    np.testing.assert_allclose(metrics[f"teacher/share/{name}"], rows.mean())
    np.testing.assert_allclose(
      metrics[f"teacher/cost/{name}"],
      alone[-1][2]["cost"],
      rtol=1e-4,
      atol=1e-5,
    )
  np.testing.assert_allclose(value, sum(x[1] for x in alone), rtol=1e-5)
  assert_close(gradient, jax.tree.map(jnp.add, *(x[0] for x in alone)))


def test_a_broken_teacher_reaches_its_own_sequences_alone(
  student, other, batch
):
  learn = gradients(student, config.SDPOConfig(), several(other), section())
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), other.params)
  # Of the sequences of the broken teacher none has a signal.
  quiet = batch.replace(sample_mask=batch.sample_mask * batch.teacher_index)

  def run(first, batch):
    # The student as it is now is the second teacher.
    return learn(student.params, (first, None), batch, jax.random.key(0))

  expected, found = run(other.params, quiet), run(broken, quiet)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert np.isfinite(found[1])
  assert found[1] > 0

  # On the devices of a mesh it is the same.
  whole = run(other.params, batch)
  mesh = sharding.make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    shared = run(other.params, sharding.put_batch(mesh, batch))
  assert_close(shared[:2], whole[:2])


ROUTING = TeacherRouting(("math", "code", "own"), "data_source", None)


def problem(index, teacher=None):
  return Problem(index, (), "", teacher=teacher)


def test_a_problem_has_the_teacher_that_its_row_names():
  assert ROUTING.assign(problem(0), "code", "row 1").teacher == "code"
  # An environment that knows better is not overruled.
  assert ROUTING.assign(problem(0, "own"), "code", "row 1").teacher == "own"
  usual = dataclasses.replace(ROUTING, default="math")
  assert usual.assign(problem(0), None, "row 1").teacher == "math"
  assert usual.assign(problem(0), "own", "row 1").teacher == "own"
  with pytest.raises(DataError, match=r"a\.jsonl, line 7 names the teacher "):
    usual.assign(problem(0), "mth", "a.jsonl, line 7")
  with pytest.raises(DataError, match="did you mean 'math'"):
    usual.assign(problem(0), "mth", "row 1")
  # A data set's teacher goes before its rows', and after the environment's.
  whole = dataclasses.replace(ROUTING, of_all="math")
  assert whole.assign(problem(0), "mth", "row 1").teacher == "math"
  assert whole.assign(problem(0, "own"), None, "row 1").teacher == "own"
  with pytest.raises(DataError, match=r"or set teacher\.default_model"):
    ROUTING.assign(problem(0), None, "row 1")


def test_an_update_keeps_its_problems():
  names = ["own", "code", "math", "own", "math", "code"]
  problems = [problem(i, name) for i, name in enumerate(names)]
  found = ROUTING.sort(problems, 3)
  assert [x.index for x in found] == [2, 1, 0, 4, 5, 3]


def test_sequences_are_sorted_by_teacher_alone():
  with pytest.raises(config.ConfigError, match="sorts sequences by length"):
    config.parse(
      {
        "teacher": {"models": {"math": {"directory": "x"}}},
        "optimizer": {"tokens_per_micro_batch": 512},
      }
    )


@pytest.mark.parametrize(
  ("changed", "text"),
  [
    ({"model": {"directory": "x"}}, "model is one teacher for all .* model=nu"),
    (
      {"server": {"url": "http://h/v1", "model": "m"}, "access": "top_k"},
      "server is one teacher for all problems",
    ),
    ({"default_model": "cod"}, "did you mean code"),
    ({"guard": {}, "parameters": "ema"}, "set guard=null"),
    ({"models": {}, "default_model": "code"}, "models is empty"),
    ({"models": {}, "routing_key": "domain"}, "drop routing_key"),
    (
      {"models": {"a": {"directory": "x"}}, "parameters": "ema"},
      "or null in place of one",
    ),
    ({"models": {"a b": None}}, "should match pattern"),
  ],
)
def test_settings_that_make_no_sense_are_refused(changed, text):
  tree = {"models": {"math": {"directory": "x"}, "code": None}}
  with pytest.raises(config.ConfigError, match=text):
    config.parse({"teacher": {**tree, **changed}})


@pytest.fixture
def run(tmp_path):
  """Settings of a small run; the calculator teaches some of its problems."""
  tokenizer = load_policy("embedded:calculator").tokenizer
  student = test_teacher_models.save(
    tmp_path / "student", tokenizer, vocab_size=416
  )
  other = test_teacher_models.save(
    tmp_path / "other", tokenizer, seed=1, vocab_size=405, width=24
  )
  rows = tmp_path / "rows.jsonl"
  sources = ("math", "other", None, "own")

  def made(name, **changed):
    lines = [
      {
        "prompt": f"{i} + 1",
        "answer": str(i + 1),
        "extra_info": {"source": sources[i % 4]},
        "solution": f"It is {i + 1}." if i % 8 < 6 else None,
      }
      for i in range(16)
    ]
    lines[5] |= changed.pop("row", {})
    rows.write_text("".join(json.dumps(x) + "\n" for x in lines))
    models = {
      "math": {"directory": "embedded:calculator"},
      "other": {"directory": other},
      "own": None,
    }
    return test_teacher_models.settings(
      student,
      **{
        "data__train": str(rows),
        "data__evaluation": str(rows),
        "data__num_train": None,
        "environment__kind": "math",
        "teacher__model": None,
        "teacher__models": models,
        "teacher__routing_key": "extra_info.source",
        "teacher__default_model": "own",
        "optimizer__micro_batch_size": 8,
        "train__num_steps": 2,
        "train__run_directory": str(tmp_path / name),
        **changed,
      },
    )

  return made


def mixed(trial):
  """Beside the rows, problems that name no teacher.

  Groups whose row has no solution are replaced.
  """
  tree = trial.model_dump(mode="json")
  tree["mixture"] = {
    "rows": {name: tree.pop(name) for name in ("data", "environment")},
    "sums": {
      "teacher": "math",
      "data": {"num_train": 16, "num_evaluation": 4},
      "environment": {"kind": "calculator"},
    },
  }
  tree["rollout"]["refill"] = {"max_rounds": 1}
  tree["teacher"] |= {"solution": "reference", "feedback": "never"}
  return tree


def train(trial):
  """Trains; returns the metrics of each step without times."""
  trainer.Trainer(trial).train()
  path = trial.run_directory / "metrics.jsonl"
  return [
    {
      k: v
      for k, v in json.loads(x).items()
      if not k.startswith(("time/", "memory/"))
    }
    for x in path.read_text().splitlines()
  ]


def test_a_run_has_several_teachers_and_goes_on(run, tmp_path):
  def made(name, **changed):
    return config.parse(mixed(run(name, **changed)))

  whole = train(made("whole"))
  names = ("math", "other", "own")
  for line in whole:
    shares = [line[f"teacher/share/{name}"] for name in names]
    assert sum(shares) == pytest.approx(1)
    costs = [line[f"teacher/cost/{name}"] for name in names]
    assert all(np.isfinite(costs))
    assert costs[0] > costs[1] + 0.1
    assert line["groups/refilled"] > 0
  train(made("cut", train__num_steps=1))
  assert train(made("cut")) == whole
  params = [
    test_teacher_models.last_params(tmp_path / name, str(tmp_path / "student"))[
      0
    ]
    for name in ("whole", "cut")
  ]
  jax.tree.map(np.testing.assert_array_equal, *params)


def test_a_row_without_a_teacher_ends_the_run_at_its_start(run):
  misspelt = {"row": {"extra_info": {"source": "mth"}}}
  with pytest.raises(
    DataError, match=r"rows\.jsonl, line 6 names .* did you mean 'math'"
  ):
    trainer.Trainer(run("bad", **misspelt))
  missing = {"teacher__default_model": None, "data__malformed_rows": "skip"}
  with pytest.raises(DataError, match="line 3 names no teacher"):
    trainer.Trainer(run("bad", **missing))


def test_a_data_set_names_the_teacher_of_its_problems(run):
  tree = mixed(run("mixture"))
  # Its rows name teachers too, of which one does not exist.
  run("mixture", row={"extra_info": {"source": "mth"}})
  tree["mixture"]["rows"]["teacher"] = "other"
  tree["optimizer"] |= {"mini_batch_size": 8, "micro_batch_size": None}
  trial = config.parse(tree)
  found = data_problems.load_problems(
    trial, environments.build_environment(trial)
  )
  for name, teacher in (("sums", "math"), ("rows", "other")):
    for problem in found.train[name]:
      assert (problem.source, problem.teacher) == (name, teacher)
    assert {x.teacher for x in found.evaluation[name]} == {None}

  # A step's problems are sorted within its two updates; further ones are not.
  data = data_problems.Data(found.train, found.evaluation, 0, 0)
  stream = training_stream.build_stream(trial, data)
  updates = ["math", "math", "other", "other"] * 2
  assert [x.teacher for x in next(stream)] == updates
  further = [x.teacher for x in stream.draw([4])]
  assert further in (["math", "other"] * 2, ["other", "math"] * 2)

  tree["mixture"]["sums"]["teacher"] = "othr"
  with pytest.raises(config.ConfigError, match=r"teacher=othr .*mean other"):
    config.parse(tree)
  tree["teacher"] |= {"models": {}, "default_model": None}
  tree["teacher"]["routing_key"] = "data_source"
  with pytest.raises(config.ConfigError, match=r"drop mixture\..*\.teacher"):
    config.parse(tree)
