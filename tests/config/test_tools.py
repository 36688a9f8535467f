"""The section `tools`, and what it becomes."""

import pytest

from distil_jax import config as configs
from distil_jax.data import tokenizer as tokenizers
from distil_jax.generation.policy import Policy
from distil_jax.training.setup import workers
from tests import networks

OWN = """
def make(word="yes"):
  return lambda problem, turns, outputs: word
"""


def parse(tmp_path, text, *overrides):
  path = tmp_path / "trial.yaml"
  path.write_text(text or "{}")
  return configs.load(path, list(overrides))


def test_there_are_none_by_default(tmp_path):
  assert parse(tmp_path, "").tools is None


@pytest.mark.parametrize(
  ("text", "overrides"),
  [
    ("tools: {kind: python, max_turns: 3, seconds: 2}", ()),
    ("tools: {max_turns: 3, seconds: 2}", ()),
    ("", ("tools.max_turns=3", "tools.seconds=2")),
  ],
)
def test_python_in_all_its_writings(tmp_path, text, overrides):
  text = text.replace("}", ", max_output_tokens: 64}")
  more = ("tools.max_output_tokens=64",) if overrides else ()
  found = parse(tmp_path, text, *overrides, *more).tools
  assert found == configs.PythonToolConfig(
    max_turns=3, seconds=2.0, max_output_tokens=64
  )


def test_ones_own_has_its_settings_beside_those_of_every_tool(tmp_path):
  found = parse(
    tmp_path, "tools: {kind: a.b:make, word: no, max_output_tokens: 16}"
  ).tools
  assert found == configs.OwnToolConfig(
    function="a.b:make", settings={"word": False}, max_output_tokens=16
  )


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("tools: {max_turns: 1}", ["tools", "max_turns", "greater than or equal"]),
    ("tools: {kind: perl}", ["tools", "'python'", "perl"]),
    ("tools: {secnds: 1}", ["tools", "secnds", "seconds"]),
    ("tools: 3", ["tools"]),
    (
      "tools: {max_output_tokens: 128}",
      [
        "tools.max_output_tokens=128 leaves no room",
        "rollout.max_completion_length=128",
      ],
    ),
    (
      "{tools: {max_output_tokens: 64},"
      " evaluation: {max_completion_length: 64}}",
      ["evaluation.max_completion_length=64"],
    ),
    (
      "{tools: {max_output_tokens: 64}, teacher: {parameters: ema, guard: {}}}",
      ["teacher.guard", "with tools=python", "tools=null"],
    ),
    (
      "tools: {max_output_tokens: 64, seconds: 30}",
      ["tools.call_seconds=60", "62 s", "tools.seconds=30"],
    ),
  ],
)
def test_what_cannot_work_is_refused(tmp_path, text, said):
  with pytest.raises(configs.ConfigError) as error:
    parse(tmp_path, text)
  for part in said:
    assert part in str(error.value)


@pytest.fixture(scope="module")
def policy():
  return networks.policy()


class TestAssembly:
  def tooling(self, tmp_path, policy, text):
    return workers.build_tool_pool(parse(tmp_path, text), policy)

  def test_none(self, tmp_path, policy):
    assert self.tooling(tmp_path, policy, "") is None

  def test_ones_own_answers(self, tmp_path, policy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_tool_of_config.py").write_text(OWN)
    made = self.tooling(
      tmp_path,
      policy,
      "tools: {kind: own_tool_of_config:make, word: maybe, max_turns: 5,"
      " max_output_tokens: 16}",
    )
    assert made.max_turns == 5
    assert made.ask(None, ["?"], []).result(timeout=20).message == "maybe"

  def test_python_runs_in_the_sandbox(self, tmp_path, policy):
    made = self.tooling(tmp_path, policy, "tools: {max_output_tokens: 64}")
    turn = "```python\nprint(6 * 7)\n```"
    assert made.ask(None, [turn], []).result(timeout=60).message == "42"
    assert made.ask(None, ["42"], []).result(timeout=60).message is None

  @pytest.mark.parametrize(
    ("text", "said"),
    [
      ("{kind: no_such_module:make}", "there is no module 'no_such_module'"),
      ("{kind: fractions:Fraction}", "made a Fraction, which cannot be called"),
      ("{kind: fractions:Fraction, n: 1}", "has no setting 'n'"),
    ],
  )
  def test_what_is_no_tool_is_refused(self, tmp_path, policy, text, said):
    text = text.replace("}", ", max_output_tokens: 64}")
    with pytest.raises(configs.ConfigError, match=f"^tools: .*{said}"):
      self.tooling(tmp_path, policy, f"tools: {text}")

  def test_a_template_without_a_place_is_refused(self, tmp_path):
    deaf = tokenizers.train(
      ["a"], vocab_size=300, chat_template="{{ messages[0]['content'] }}"
    )
    policy = Policy(None, None, {}, deaf)
    with pytest.raises(
      configs.ConfigError, match="cannot put a message of tool"
    ):
      self.tooling(tmp_path, policy, "tools: {max_output_tokens: 64}")
