"""Programs judged: real ones, broken ones, and every layout of tests."""

import base64
import concurrent.futures
import json
import pathlib
import pickle
import zlib
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distil_jax.config.environments import CodeConfig
from distil_jax.envs import contract
from distil_jax.envs import sandbox as sandboxes
from distil_jax.envs.code import Code, last_program
from distil_jax.envs.program_tests import feedback as code_feedback
from distil_jax.envs.program_tests import row_layouts as code_tests
from distil_jax.envs.program_tests.outputs import is_same_output
from distil_jax.envs.program_tests.prompts import fenced
from distil_jax.types import Status
from tests import cpu_time
from tests.paths import DATA

ROWS = DATA / "humaneval"
needs_data = pytest.mark.skipif(
  not ROWS.is_dir(), reason="HumanEval is not beside the checkout"
)

STDIN = {
  "prompt": "Write the sum of the numbers of each line.",
  "tests": [
    {"input": "1 2\n3\n", "output": "3\n3\n"},
    {"input": "10 20 30\n", "output": "60\n"},
  ],
}
SUMS = """
import sys
for line in sys.stdin:
  print(sum(map(int, line.split())))
"""


@pytest.fixture(scope="module")
def sandbox():
  with sandboxes.make() as made:
    yield made


@pytest.fixture(scope="module")
def code(sandbox):
  return Code(CodeConfig(seconds=2.0), sandbox)


def judge(environment, row, program):
  problem = environment.problem(row)
  return environment.judge(problem, f"So:\n\n{fenced(program)}\n")


def humaneval():
  text = (ROWS / "humaneval.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def broken(row):
  """The right program, whose every answer is then changed a little."""
  return f"""{row["prompt"]}{row["canonical_solution"]}

def _other(value):
  if isinstance(value, bool): return not value
  if isinstance(value, (int, float)): return value + 1
  if isinstance(value, str): return value + "x"
  if isinstance(value, list): return [*value, None]
  if isinstance(value, tuple): return (*value, None)
  if isinstance(value, dict): return {{**value, "x": 1}}
  return 0

_right = {row["entry_point"]}

def {row["entry_point"]}(*args):
  return _other(_right(*args))
"""


@needs_data
def test_humaneval(code):
  """Right programs are right, and broken ones wrong, by name of the test."""
  rows = humaneval()
  problems = [code.problem(row, i) for i, row in enumerate(rows)]
  assert len(problems) == 164
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    right = pool.map(lambda p: code.judge(p, p.solution), problems)
    for problem, verdict in zip(problems, right, strict=True):
      assert verdict.status is Status.CORRECT, (problem.index, verdict)
      assert verdict.details["pass_rate"] == 1.0
    wrong = pool.map(
      lambda p: code.judge(p, fenced(broken(rows[p.index]))), problems
    )
    for row, verdict in zip(rows, wrong, strict=True):
      assert verdict.status is Status.WRONG, (row["task_id"], verdict)
      assert "Failed: assert" in verdict.feedback
      assert f"{row['entry_point']}(" in verdict.feedback
      assert len(verdict.feedback) <= code_feedback.MAX_LENGTH


@needs_data
def test_humaneval_that_breaks(code):
  row = humaneval()[0]
  prompt, name = row["prompt"], row["entry_point"]
  verdict = judge(code, row, prompt + "    return numbers[100] > 1")
  assert verdict.status is Status.ERROR
  assert verdict.feedback.splitlines()[:2] == [
    "Runtime Error",
    "IndexError: list index out of range",
  ]
  assert f", in {name}: return numbers[100] > 1" in verdict.feedback
  assert "At: assert candidate([1.0, 2.0," in verdict.feedback
  verdict = judge(code, row, prompt + "    while True: pass")
  assert verdict.status is Status.TIMEOUT
  assert verdict.feedback.startswith(f"Time Limit Exceeded\nAt: {name}([1.0,")
  verdict = judge(code, row, "def f(: pass")
  assert verdict.status is Status.ERROR
  assert "SyntaxError" in verdict.feedback
  assert "line 1: def f(: pass" in verdict.feedback
  verdict = judge(code, row, "def f(): pass")
  assert f"NameError: name '{name}' is not defined" in verdict.feedback


class TestScripts:
  def test_right(self, code):
    verdict = judge(code, STDIN, SUMS)
    assert verdict.status is Status.CORRECT
    assert verdict.details == {
      "num_passed": 2,
      "num_tests": 2,
      "pass_rate": 1.0,
    }

  def test_wrong_answers_the_shortest_first(self, code):
    verdict = judge(code, STDIN, "print(60)")
    assert verdict.status is Status.WRONG
    assert verdict.details["pass_rate"] == 0.5
    assert verdict.feedback == (
      "Wrong Answer\nInput: 1 2\n3\nOutput: 60\nExpected: 3\n3"
    )
    verdict = judge(code, STDIN, "print(0)")
    first, second = verdict.feedback.split("\n\n")
    assert "Input: 1 2\n3" in first
    assert "Input: 10 20 30" in second

  def test_an_error_comes_before_a_wrong_answer(self, code):
    program = "x = input()\nif x[:2] == '10': 1 / 0\nprint(x)"
    verdict = judge(code, STDIN, program)
    assert verdict.status is Status.ERROR
    assert verdict.feedback == (
      "Runtime Error\nZeroDivisionError: division by zero\n"
      "  line 2: if x[:2] == '10': 1 / 0\nLast input: 10 20 30"
    )

  def test_a_time_out_comes_before_a_wrong_answer(self, code):
    program = "x = input()\nwhile x[:2] == '10': pass\nprint(x)"
    verdict = judge(code, STDIN, program)
    assert verdict.status is Status.TIMEOUT
    assert verdict.feedback == "Time Limit Exceeded\nLast input: 10 20 30"

  def test_after_a_time_out_no_more_is_run(self, code):
    row = STDIN | {"tests": STDIN["tests"] * 20}
    verdict = judge(code, row, "while True: pass")
    assert verdict.status is Status.TIMEOUT
    assert verdict.details == {
      "num_passed": 0,
      "num_tests": 40,
      "pass_rate": 0.0,
    }

  def test_all_together_have_a_time(self, sandbox):
    slow = Code(CodeConfig(total_seconds=0.3), sandbox)
    row = STDIN | {"tests": [{"input": "", "output": "1"}] * 10}
    verdict = judge(slow, row, "import time\ntime.sleep(0.2)\nprint(1)")
    assert verdict.status is Status.TIMEOUT
    assert verdict.details["num_passed"] == 2
    assert verdict.details["num_tests"] == 10

  def test_other_ends(self, sandbox):
    small = Code(CodeConfig(memory_gib=0.25), sandbox)
    for program, said in (
      ("import os\nos._exit(3)", "The program ended with exit status 3"),
      ("import sys\nsys.exit('no')", "exit status 1: no"),
      ("import os\nos.abort()", "The program was killed by SIG"),
      ("x = [0] * 10**9", "MemoryError"),
      ("while 1: print('x' * 10**6)", "Output Limit Exceeded"),
    ):
      verdict = judge(small, STDIN, program)
      assert verdict.status is Status.ERROR
      assert said in verdict.feedback, verdict

  def test_deep_recursion_is_told_shortly(self, code):
    verdict = judge(code, STDIN, "def f(x):\n  return f(x)\nf(1)")
    assert "RecursionError" in verdict.feedback
    assert "more\n" in verdict.feedback
    assert len(verdict.feedback) < 600

  def test_feedback_stays_short(self, code):
    row = {
      "prompt": "x",
      "tests": [{"input": "y" * 50_000, "output": "z" * 50_000}] * 2,
    }
    verdict = judge(code, row, "print('w' * 10**5)")
    assert len(verdict.feedback) <= code_feedback.MAX_LENGTH
    assert " … " in verdict.feedback


class TestCalls:
  ROW: ClassVar = {
    "prompt": "Merge two lists.",
    "starter_code": "class Solution:\n  def merge(self, a, b):\n    ",
    "fn_name": "merge",
    "tests": {"inputs": [[[1], [2]], [[], []]], "outputs": [[1, 2], []]},
  }

  def test_a_method_and_a_function(self, code):
    method = "class Solution:\n  def merge(self, a, b): return a + b"
    function = "def merge(a, b): return (*a, *b)"
    for program in (method, function):
      assert judge(code, self.ROW, program).reward == 1.0

  def test_wrong(self, code):
    program = "def merge(a, b):\n  print('hi')\n  return a"
    verdict = judge(code, self.ROW, program)
    assert verdict.feedback == (
      "Wrong Answer\nInput: [1]\n[2]\nOutput: [1]\nExpected: [1, 2]\n"
      "Printed: hi"
    )

  def test_what_is_no_value(self, code):
    for value, said in (
      ("merge", "a function, which is no plain value"),
      ("{1, 2}", "a set, which JSON does not know"),
      ("float('nan')", "NaN"),
    ):
      verdict = judge(code, self.ROW, f"def merge(a, b): return {value}")
      assert verdict.status is Status.WRONG
      assert said in verdict.feedback

  def test_a_number_that_python_does_not_write(self, code):
    verdict = judge(code, self.ROW, "def merge(a, b): return 10 ** 5000")
    assert verdict.status is Status.WRONG
    assert "too large a number to show" in verdict.feedback

  @pytest.mark.parametrize(
    "report",
    [
      '{"value": ["float", "0x1p5000"]}',
      '{"value": ' + "[" * 900 + "]" * 900 + "}",
      '{"value": ["list", {"none": 1}]}',
      '{"value": ["dict", [[["list", []], ["none"]]]]}',
      '{"value": ["int", ' + "9" * 5000 + "]}",
      '{"value": ["none", 1], "not_plain": [], "raised": []}',
      '{"raised": {"frames": [[1e400, 1, 2], [true, "", ""]]}}',
      '{"raised": {"type": {}, "message": [], "num_skipped": "x"}}',
      "NaN",
      "\\ud800",
    ],
  )
  def test_a_forged_report_is_no_answer(self, code, report):
    program = f"""
import os
def merge(a, b):
  os.write(3, {report!r}.encode())
  os._exit(0)
"""
    verdict = judge(code, self.ROW, program)
    assert verdict.status in (Status.WRONG, Status.ERROR)

  def test_the_question_shows_what_to_begin_with(self, code):
    asked = code.problem(self.ROW).messages[-1]["content"]
    assert asked.startswith("Merge two lists.\n\nAnswer with")
    assert asked.endswith(fenced(self.ROW["starter_code"]))


class TestLiveCodeBench:
  """As its rows are: tests are JSON text, the hidden ones packed."""

  @staticmethod
  def row(kind="stdin", metadata="{}"):
    tests = [
      [{"input": "1", "output": "2", "testtype": kind}],
      [{"input": "secret 7", "output": "secret 8", "testtype": kind}],
    ]
    if kind == "functional":
      tests[1] = [{"input": "70707", "output": "70708", "testtype": kind}]
    packed = zlib.compress(pickle.dumps(json.dumps(tests[1])))
    return {
      "prompt": "Add one.",
      "public_test_cases": json.dumps(tests[0]),
      "private_test_cases": base64.b64encode(packed).decode(),
      "metadata": metadata,
      "starter_code": "",
    }

  @pytest.mark.parametrize(
    "program",
    [
      "x = input()\nprint(2 if x == '1' else 'no')",
      "x = input()\nassert x == '1', x\nprint(2)",
      "x = input()\nprint(2)\nif x != '1': print(x); raise ValueError(x)",
      "x = input()\nprint(2)\nwhile x != '1': pass",
      "import sys\nx = input()\nprint(2)\nsys.exit(x if x != '1' else 0)",
      "x = input()\nprint(2)\nif x != '1': raise type(x, (Exception,), {})",
      "import json, os\nx = input()\nprint(2, flush=True)\nif x != '1':\n"
      "  frames = [[1, x, x], [2, x, x]]\n"
      "  said = {'raised': {'type': x, 'frames': frames}}\n"
      "  os.write(3, json.dumps(said).encode()); os._exit(0)",
    ],
  )
  def test_hidden_tests_stay_hidden(self, sandbox, program):
    careful, open_hearted = (
      Code(CodeConfig(seconds=1.0, reveal_hidden_tests=reveal), sandbox)
      for reveal in (False, True)
    )
    verdict = judge(careful, self.row(), program)
    assert verdict.reward == 0.0
    assert "A hidden test" in verdict.feedback
    assert "secret" not in verdict.feedback
    verdict = judge(open_hearted, self.row(), program)
    assert "secret 7" in verdict.feedback

  def test_an_error_at_a_hidden_test_shows_where(self, code):
    program = "x = input()\nprint(2)\nif x != '1': print(int(x))"
    assert judge(code, self.row(), program).feedback == (
      "Runtime Error\nValueError\n  line 3: if x != '1': print(int(x))\n"
      "A hidden test ends so."
    )

  def test_public_failures_are_told_first(self, code):
    verdict = judge(code, self.row(), "print('neither')")
    first, second = verdict.feedback.split("\n\n")
    assert "Input: 1\nOutput: neither\nExpected: 2" in first
    assert second == "Wrong Answer\nA hidden test fails."

  def test_calls(self, code):
    row = self.row("functional", '{"func_name": "add"}')
    good = "class Solution:\n  def add(self, x: int) -> int: return x + 1"
    assert judge(code, row, good).reward == 1.0
    verdict = judge(code, row, "def add(x): return 2")
    assert verdict.feedback == "Wrong Answer\nA hidden test fails."

  def test_what_is_packed_is_text_and_no_program(self, code):
    evil = zlib.compress(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    packed = base64.b64encode(evil).decode()
    with pytest.raises(ValueError, match="private_test_cases is no JSON"):
      code.problem(self.row() | {"private_test_cases": packed})
    assert not pathlib.Path("/tmp/pwned").exists()


class TestMBPP:
  ROW: ClassVar = {
    "prompt": "Write a function to double a list.",
    "test_list": [
      "assert double([1]) == [2]",
      "assert set(double((1, 2))) == {2, 4}",
      "assert math.isclose(double([0.1])[0], 0.2)",
    ],
    "test_imports": ["import math"],
    "test_setup_code": "",
  }

  def test_each_assertion_counts(self, code):
    good = "def double(x): return [2 * y for y in x]"
    verdict = judge(code, self.ROW, good)
    assert verdict.reward == 1.0
    assert verdict.details["num_tests"] == 3
    verdict = judge(code, self.ROW, "def double(x): return [2]")
    assert verdict.details["num_passed"] == 1
    assert "Failed: assert set(double((1, 2))) == {2, 4}" in verdict.feedback
    assert "double((1, 2)) returned [2]" in verdict.feedback

  def test_a_function_may_be_named_as_one_of_pythons(self, code):
    row = {
      "prompt": "The sum of the common divisors.",
      "test_list": ["assert sum(10, 15) == 6", "assert max([1]) == 1"],
      "code": "def sum(a, b): return 6",
    }
    right = "def sum(a, b): return 6\ndef max(x): return 2"
    assert judge(code, row, right).reward == 1.0
    assert judge(code, row, "def sum(a, b): return 7").reward == 0.0

  def test_tests_that_expect_an_error(self, code):
    row = {
      "prompt": "x",
      "test_list": [
        "try:\n  f(-1)\n  assert False\nexcept ValueError as error:\n"
        "  assert 'minus' in str(error)"
      ],
    }
    good = "def f(x):\n  if x < 0: raise ValueError('minus')\n  return x"
    assert judge(code, row, good).reward == 1.0
    assert judge(code, row, "def f(x): return x").status is Status.WRONG
    verdict = judge(code, row, "def f(x): raise KeyError(x)")
    assert verdict.status is Status.ERROR
    assert "KeyError" in verdict.feedback

  def test_who_reaches_no_assertion_has_passed_none(self, code):
    row = {"prompt": "x", "test": "for x in f(): assert x == 1"}
    assert judge(code, row, "def f(): return [1]").reward == 1.0
    verdict = judge(code, row, "def f(): return []")
    assert verdict.status is Status.WRONG
    assert "no assertion" in verdict.feedback

  def test_tests_that_are_broken_blame_nobody(self, code):
    row = {"prompt": "x", "test": "import json.nothing\nassert f(1)"}
    verdict = judge(code, row, "x = 1")
    assert verdict.status is Status.CRASHED
    assert verdict.feedback == ""


class TestBlocks:
  def test_the_last_closed_block_of_python_counts(self):
    for text, program in (
      ("```python\nx\n```", "x\n"),
      ("```\nx\n```", "x\n"),
      ("```py\nx\n```\n```Python3\ny\n```", "y\n"),
      ("```python\nx\n```\n```text\noutput\n```", "x\n"),
      ("```python\nx\n```\nand\n```python\ny", "x\n"),
      ("```python\n'''\n```python\n'''\n```", "'''\n```python\n'''\n"),
      ("  ```python\n  x\n  ```", "x\n"),
      ("```python title='a'\nx\n```", "x\n"),
    ):
      assert last_program(text)[0] == program, text

  def test_long_lines_are_soon_read(self):
    with cpu_time.at_most(5):
      for line in ("a", " ", " a", "\t"):
        last_program("```" + line * 300_000 + "`")

  @pytest.mark.parametrize(
    ("text", "said"),
    [
      ("", "no code block was found"),
      ("def f(): pass", "no code block was found"),
      ("```json\n{}\n```", "no code block was found"),
      ("``` python x", "the code block is never closed"),
      ("```python\ndef f(", "the code block is never closed"),
    ],
  )
  def test_others_are_told_what_is_missing(self, code, text, said):
    verdict = code.judge(code.problem(STDIN), text)
    assert verdict.status is Status.UNPARSABLE
    assert said in verdict.feedback


class TestOutputs:
  def test_same(self):
    for a, b in (
      ("1\n2\n", "1\n2"),
      ("1 2  ", "1 2\n\n"),
      ("1.0", "1"),
      ("1e3 x", "1000 x"),
      ("", "\n"),
      ("0.10", "0.1"),
    ):
      assert is_same_output(a, b)
      assert is_same_output(b, a)

  def test_different(self):
    for a, b in (
      ("1\n2", "1 2"),
      ("1", "2"),
      ("", "1"),
      ("yes", "Yes"),
      ("nan", "NaN"),
      ("1\n\n2", "1\n2"),
      ("9" * 200, "9" * 199 + "8"),
    ):
      assert not is_same_output(a, b)

  @given(st.text(), st.text())
  def test_any(self, a, b):
    assert is_same_output(a, a)
    assert is_same_output(a, b) == is_same_output(b, a)


class TestRows:
  @pytest.mark.parametrize(
    ("row", "said"),
    [
      ({}, "the row has no prompt"),
      ({"prompt": "x"}, "the row has no test"),
      ({"prompt": "x", "tests": "{"}, "tests is no JSON"),
      ({"prompt": "x", "tests": 3}, "tests must be a list"),
      ({"prompt": "x", "tests": []}, "the row has no test"),
      ({"prompt": "x", "tests": [{"input": "x"}]}, "input and output"),
      ({"prompt": "x", "tests": {"inputs": [1]}}, "two lists"),
      (
        {"prompt": "x", "tests": {"inputs": ["1"], "outputs": []}},
        "1 inputs and 0 outputs",
      ),
      (
        {
          "prompt": "x",
          "tests": [{"input": "1", "output": "1", "testtype": "functional"}],
        },
        "no func_name",
      ),
      ({"prompt": "x", "fn_name": "f()", "tests": []}, "no name"),
      (
        {
          "prompt": "x",
          "fn_name": "f",
          "tests": [{"input": "{", "output": "1"}],
        },
        "no JSON",
      ),
      ({"prompt": "x", "test_list": "assert 1"}, "a list of texts"),
      ({"prompt": "x", "test": "f(1)"}, "no assert statement"),
      ({"prompt": "x", "test": "", "entry_point": "f"}, "no test"),
      (
        {"prompt": "x", "test": "assert 1", "entry_point": "f g"},
        "is no name",
      ),
    ],
  )
  def test_bad_ones_are_refused(self, code, row, said):
    with pytest.raises(ValueError, match=said):
      code.problem(row)

  def test_tests_survive_as_data(self):
    for row in (STDIN, TestCalls.ROW, TestMBPP.ROW, TestLiveCodeBench.row()):
      tests = code_tests.read(row)
      data = json.loads(json.dumps(code_tests.as_data(tests)))
      assert code_tests.from_data(data) == tests

  def test_a_field_that_holds_hidden_tests(self, code):
    row = {"prompt": "x", "hidden_test": "assert f(77) == 1"}
    verdict = judge(code, row, "def f(x): return x")
    assert verdict.feedback == "Wrong Answer\nA hidden test fails."


def test_the_contract(sandbox):
  quick = Code(CodeConfig(seconds=1.0), sandbox)
  rows = [STDIN, TestCalls.ROW, TestMBPP.ROW]
  completions = [fenced(SUMS), fenced("1 / 0"), fenced("x = \0\ud800")]
  contract.check(quick, rows, completions)


@given(st.text())
def test_any_text_has_a_verdict(text):
  """Of the text alone: what runs is attacked in tests/sandbox."""
  program, fault = last_program(text)
  assert (program is None) == bool(fault)


@settings(
  max_examples=25,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
  deadline=None,
)
@given(program=st.text() | st.from_regex(r"(print|x = |[a-z(]+)\(.*\)\n"))
def test_any_program_has_a_verdict(code, program):
  verdict = code.judge(code.problem(STDIN), f"```\n{program}\n```")
  assert verdict.status is not Status.CRASHED
  assert verdict.reward in (0.0, 1.0)


@pytest.mark.parametrize(
  "setting",
  [{"seconds": 0}, {"total_seconds": 0}, {"memory_gib": -1}],
)
def test_bad_settings_are_refused(setting):
  with pytest.raises(ValueError, match="should be greater than 0"):
    CodeConfig(**setting)
