import dataclasses
import itertools
import json
import pathlib
import re

import pytest
import yaml

from distil_jax import config, envs
from distil_jax.envs import contract
from distil_jax.training import trainer
from distil_jax.types import Problem, Status, Verdict
from tests.paths import ROOT

GUIDE = ROOT / "docs/guides/your_environment.md"
ROWS = {
  "multiple_choice": {"prompt": "p", "answer": "B"},
  "math": {"prompt": "p", "answer": "x #### 3"},
  "code": {
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "  return 2 * x\n",
    "test": "def check(f):\n  assert f(3) == 6\n",
  },
  "tool_calls": {
    "prompt": "p",
    "answer": [{"Action": "a", "Action_Input": {"x": 1}}],
  },
  "reasoning_gym": None,
  "self_evaluation": {"prompt": "p", "answer": "x #### 3"},
  "calculator": None,
  "constrained_writing": {"topic": "the sea", "words": ["lamp", "road"]},
  "guess_number": {"smallest": 1, "largest": 8, "number": 3},
}
SETTINGS = {
  "reasoning_gym": {"task": "chain_sum"},
  "self_evaluation": {"of": {"kind": "math", "symbolic": False}},
}


def row_of(kind):
  """A row, also of what makes its own problems."""
  if ROWS[kind] is not None:
    return ROWS[kind]
  made = envs.make_environment(kind, **SETTINGS.get(kind, {}))
  problem = made.generate(0, "train")
  return {"prompt": problem.messages[0]["content"], "answer": problem.answer}


@pytest.mark.parametrize("kind", envs.ENVIRONMENTS)
def test_every_environment_keeps_the_contract(kind):
  right = [
    "<answer>B</answer>",
    'Action: a\nAction Input: {"x": 1}',
    "1 + 2 = 3\n<answer>3</answer>",
    "\\boxed{3}",
    "\\boxed{1 + 2}",
    "A lamp lit the road to the sea.",
  ]
  made = envs.make_environment(kind, **SETTINGS.get(kind, {}))
  contract.check(made, [row_of(kind)], right)


class Good:
  def problem(self, row, index=0):
    if not isinstance(row.get("q"), str):
      raise ValueError("no q")
    message = {"role": "user", "content": row["q"]}
    return Problem(index=index, messages=(message,), answer="a")

  def judge(self, problem, completion):
    return Verdict(0.0, "no", Status.WRONG, {})


def verdict(**changed):
  return lambda self, problem, completion: dataclasses.replace(
    Verdict(0.0, "no", Status.WRONG, {}), **changed
  )


def change_row(self, row, index=0):
  row["q"] += "!"
  return Good.problem(self, row, index)


def change_problem(self, problem, completion):
  problem.details["seen"] = completion
  return Verdict(0.0, "no", Status.WRONG, {})


def raise_it(self, problem, completion):
  return Verdict(float(len(completion.encode())), "", Status.WRONG, {})


numbers = itertools.count()
BROKEN = {
  "changes the row": {"problem": change_row},
  "raises KeyError('q'); what it cannot read is a ValueError": {
    "problem": lambda s, row, index=0: Good().problem({"q": row["q"]}, index)
  },
  "raises AttributeError": {
    "problem": lambda s, row, index=0: Good().problem(
      {"q": (row.get("q") or "").upper()}, index
    )
  },
  "has index 0": {"problem": lambda s, row, index=0: Good().problem(row, 0)},
  "returns no Problem": {"problem": lambda s, row, index=0: row},
  "has no message": {
    "problem": lambda s, row, index=0: Problem(index, (), "a")
  },
  "has a message": {
    "problem": lambda s, row, index=0: Problem(index, ({"text": "x"},), "a")
  },
  "ends with no user's message": {
    "problem": lambda s, row, index=0: Problem(
      index, ({"role": "system", "content": "x"},), "a"
    )
  },
  "another problem the second time": {
    "problem": lambda s, row, index=0: Problem(
      index, Good().problem(row).messages, str(next(numbers))
    )
  },
  "returns None": {"judge": lambda s, p, c: None},
  "changes the problem": {"judge": change_problem},
  "has a reward 2": {"judge": verdict(reward=2.0)},
  "has a reward nan": {"judge": verdict(reward=float("nan"))},
  "has status 'odd'": {"judge": verdict(status="odd")},
  "no text as feedback": {"judge": verdict(feedback=None)},
  "feedback of 10001 characters": {"judge": verdict(feedback="x" * 10_001)},
  "details are no JSON": {"judge": verdict(details={"x": object()})},
  "another verdict the second time": {
    "judge": lambda s, p, c: Verdict(0.0, str(next(numbers)), Status.WRONG)
  },
  "raises UnicodeEncodeError": {"judge": raise_it},
}


def test_a_good_environment_passes_and_no_row_says_nothing():
  contract.check(Good(), [{"q": "x"}, {"q": "y"}])
  with pytest.raises(contract.ContractError, match="no row"):
    contract.check(Good(), [])


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_promise_is_named(fault, monkeypatch):
  monkeypatch.setattr(contract, "COMPLETIONS", ("", "\ud800"))
  broken = type("Broken", (Good,), BROKEN[fault])()
  with pytest.raises(contract.ContractError, match=re.escape(fault)):
    contract.check(broken, [{"q": "x"}, {"q": "y"}])


def blocks(language):
  return re.findall(
    rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
  )


@pytest.fixture
def guide(tmp_path, monkeypatch):
  """The folder that the guide describes."""
  example, check, *_ = blocks("python")
  assert len(example.splitlines()) <= 35
  (tmp_path / "word_count.py").write_text(example, encoding="utf-8")
  rows = [{"topic": "rain", "words": n} for n in range(1, 9)]
  (tmp_path / "topics.jsonl").write_text(
    "\n".join(map(json.dumps, rows)), encoding="utf-8"
  )
  monkeypatch.chdir(tmp_path)
  return rows, check


def test_the_example_of_the_guide_keeps_the_contract(guide):
  rows, check = guide
  made = envs.make_environment("word_count:WordCount")
  names = {"WordCount": lambda: made, "rows": rows}
  exec(compile(check, "the guide", "exec"), names)
  assert made.judge(made.problem(rows[1]), "two words").reward == 1.0


def test_the_example_of_the_guide_trains(guide, tmp_path):
  (settings,) = blocks("yaml")
  (tmp_path / "own.yaml").write_text(
    settings
    + """
model:
  directory: model
  create: {num_layers: 1, width: 16, num_heads: 1, num_kv_heads: 1}
rollout: {num_problems: 8, group_size: 2, max_completion_length: 4}
train: {num_steps: 1, run_directory: run}
evaluation: {num_samples: 1, pass_at: [1], num_problems: 8}
logging: {tensorboard: false, token_values: false}
""",
    encoding="utf-8",
  )
  loaded = config.load("own.yaml", ["environment.slack=0"])
  assert loaded.environment.settings == {"slack": 0}
  summary = trainer.Trainer(loaded).train()
  assert summary["steps"] == 1
  metrics = json.loads(pathlib.Path("run/metrics.jsonl").read_text())
  assert metrics["verdict/wrong"] > 0
  # What a run writes down is a config like the first.
  assert config.load("run/config.yaml").environment == loaded.environment
  written = yaml.safe_load(pathlib.Path("run/config.yaml").read_text())
  assert written["environment"]["function"] == "word_count:WordCount"


@pytest.mark.parametrize(
  ("kind", "settings", "message"),
  [
    ("no_such_module:f", {}, "no module 'no_such_module' here or among"),
    ("json.nothing:f", {}, "no module 'json.nothing'"),
    ("word_count:WordCont", {}, "no function .*did you mean 'WordCount'"),
    ("word_count:WordCount", {"slak": 1}, "did you mean 'slack'"),
    ("json:JSONDecoder", {}, "a JSONDecoder, which has no method 'problem'"),
    ("json:loads", {}, "json:loads needs a setting 's'"),
  ],
)
@pytest.mark.usefixtures("guide")
def test_what_is_no_environment_is_refused(kind, settings, message):
  with pytest.raises(ValueError, match=message):
    envs.make_environment(kind, **settings)


@pytest.mark.parametrize("kind", ["a b:c", "a:", ":b", "a:b:c", "../a:b"])
def test_a_kind_that_is_no_function_is_refused(kind):
  with pytest.raises(config.ConfigError, match=r"environment\.function"):
    config.parse({"environment": {"kind": kind}})
