"""Tables of rows and programs of many kinds, right and wrong."""

import pytest

from distil_jax.config.environments import CodeConfig
from distil_jax.envs import sandbox as sandboxes
from distil_jax.envs.code import Code, last_program
from distil_jax.envs.program_tests import outputs as code_outputs
from distil_jax.envs.program_tests import prompts as code_prompts
from distil_jax.types import Status
from tests import cpu_time


@pytest.fixture(scope="module")
def code():
  with sandboxes.make(num_processes=1) as sandbox:
    yield Code(CodeConfig(seconds=5.0), sandbox)


def judged(code, row, program):
  problem = code.problem({"prompt": "q", **row})
  return code.judge(problem, code_prompts.fenced(program))


def call(inputs, output, name="s"):
  """A row whose function is called once."""
  return {"tests": {"inputs": [inputs], "outputs": [output], "fn_name": name}}


def method(signature, *body):
  lines = "".join(f"    {line}\n" for line in body)
  return f"class Solution:\n  def s(self, {signature}:\n{lines}"


LEETCODE = [
  ([[1, 2]], 3, method("x: List[int])", "return sum(x)")),
  ([[1, 2]], 3, method("x: Optional[List[int]]) -> int", "return sum(x)")),
  ([[1, 1]], 1, method("x)", "return len(Counter(x))")),
  ([[1, 1]], 1, method("x)", "return len(collections.Counter(x))")),
  ([[1, 1]], 0, method("x)", "return defaultdict(int)[9]")),
  ([[1, 2]], 1, method("x)", "return deque(x).popleft()")),
  ([[2, 1]], 1, method("x)", "heapq.heapify(x)", "return heapq.heappop(x)")),
  ([[2, 1]], 1, method("x)", "heapify(x)", "return heappop(x)")),
  ([[1, 2]], 1, method("x)", "return bisect_left(x, 2)")),
  ([[1, 2]], 1, method("x)", "return bisect.bisect_left(x, 2)")),
  ([[1, 2]], [1, 3], method("x)", "return list(accumulate(x))")),
  ([[1, 2]], 2, method("x)", "return len(list(itertools.permutations(x)))")),
  ([[1, 2]], 3, method("x)", "return reduce(operator.add, x)")),
  ([5], 8, method("x)", "@cache", "def f(n):",
                  "  return n if n < 2 else f(n - 1) + f(n - 2)",
                  "return f(6)")),
  ([[3]], True, method("x)", "return inf > x[0] and math.inf > x[0]")),
  ([[6, 4]], 2, method("x)", "return gcd(*x)")),
  ([3], 6, method("x)", "return pow(3, 27, 7)")),
  (["a1"], True, method("x)", "return bool(re.match('[a-z]', x))")),
  (["b"], 1, method("x)", "return string.ascii_lowercase.index(x)")),
  ([[1, 2, 3]], [3, 2, 1], method(
    "head: Optional[ListNode]) -> Optional[ListNode]",
    "last = None",
    "while head: head.next, last, head = last, head, head.next",
    "return last")),
  ([[]], [], method(
    "head: Optional[ListNode]) -> Optional[ListNode]", "return head")),
  ([[1, 2]], [0, 1, 2], method(
    "head: ListNode) -> ListNode", "return ListNode(0, head)")),
  ([[[1, 4], [2]]], [1, 4, 2], method(
    "lists: List[Optional[ListNode]]) -> Optional[ListNode]",
    "a, b = lists", "a.next.next = b", "return a")),
  ([[3, 9, 20, None, None, 15, 7]], 3, method(
    "root: Optional[TreeNode]) -> int",
    "if not root: return 0",
    "return 1 + max(self.s(root.left), self.s(root.right))")),
  ([[1, 2, 3, None, 4]], [1, 3, 2, None, None, 4], method(
    "root: Optional[TreeNode]) -> Optional[TreeNode]",
    "if root: root.left, root.right = self.s(root.right), self.s(root.left)",
    "return root")),
  ([[]], [], method("root: TreeNode) -> TreeNode", "return root")),
  ([[1, 2]], [2], method(
    "head: 'ListNode') -> 'ListNode'", "return head.next")),
  ([[1, 2]], [1, 2], "class ListNode:\n  def __init__(self, x):\n"
    "    self.val = x\n    self.next = None\n\n"
    + method("head: ListNode) -> ListNode", "return head")),
  ([[1, 2]], 3, "def s(x: List[int]) -> int: return sum(x)"),
  ([[1, 2]], None, method("x: List[int]) -> None", "x.sort()")),
]  # fmt: skip


def test_names_that_leetcode_supplies(code):
  for inputs, output, program in LEETCODE:
    row = call(inputs, output)
    verdict = judged(code, row, program)
    assert verdict.reward == 1.0, (program, verdict)
    other = call(inputs, {"no": "such answer"})
    assert judged(code, other, program).status is Status.WRONG, program


IN_PLACE = [
  ([[2, 1]], [1, 2], method("x: List[int]) -> None", "x.sort()")),
  ([[2, 1]], [1, 2], method("x)", "x.sort()")),
  ([[2, 1]], [1, 2], "def s(x): x.sort()"),
  ([[2, 1]], [1, 2], "def s(x):\n  x.sort()\n  return x"),
  ([[1, 2, 3], 1], [3, 1, 2], method("x, k)", "x[:] = x[-k:] + x[:-k]")),
  ([[[1, 2], [3, 4]]], [[3, 1], [4, 2]], method(
    "m)", "m[:] = [list(r) for r in zip(*m[::-1])]")),
  ([[1, 2, 3]], [1, 3], method(
    "head: Optional[ListNode]) -> None", "head.next = head.next.next")),
  ([[1, 2]], [1], method("root: Optional[TreeNode]) -> None",
                         "root.left = None")),
  ([[]], [], method("head: Optional[ListNode]) -> None", "pass")),
]  # fmt: skip
ASKED = {"prompt": "Sort the list in-place."}
STARTED = {
  "starter_code": "class Solution:\n  def s(self, x: List[int]) -> None:\n"
}


def test_functions_that_change_their_argument(code):
  for inputs, output, program in IN_PLACE:
    for asked in (ASKED, STARTED):
      row = call(inputs, output) | asked
      assert judged(code, row, program).reward == 1.0, program
      wrong = call(inputs, [9]) | asked
      assert judged(code, wrong, program).status is Status.WRONG, program
  # Whoever is to return a value must do so.
  for asked in ({}, {"starter_code": "def s(x: List[int]) -> List[int]:"}):
    row = call([[2, 1]], [1, 2]) | asked
    assert judged(code, row, "def s(x): x.sort()").status is Status.WRONG
  forgotten = call([[2, 1]], [1, 2]) | ASKED
  for program in ("def s(x): x = sorted(x)", "def s(x): return 3"):
    assert judged(code, forgotten, program).status is Status.WRONG
  asked = code.problem(forgotten).messages[-1]["content"]
  assert "`s([2, 1])` changes its argument to `[1, 2]`" in asked


def test_names_that_nobody_supplies_are_missing(code):
  for row, program in (
    (call([1], 1), "def s(x): return no_such_name"),
    # A script has no more names than Python gives it.
    ({"tests": [{"input": "", "output": "2"}]}, "print(gcd(2, 4))"),
  ):
    verdict = judged(code, row, program)
    assert verdict.status is Status.ERROR
    assert "NameError" in verdict.feedback


def test_a_list_that_is_a_ring_ends(code):
  program = method(
    "head: ListNode) -> ListNode", "head.next = head", "return head"
  )
  verdict = judged(code, call([[1]], [1]), program)
  assert "more than 100000 nodes" in verdict.feedback


FENCE = "```"
BLOCKS = [
  # The last one of Python, whatever follows it.
  ("```python\nx\n```\n```\nprinted\n```", "x\n"),
  ("```\na\n```\n```python\nx\n```\n```text\nb\n```", "x\n"),
  ("```\na\n```\n```\nx\n```", "x\n"),
  ("```py3\nx\n```", "x\n"),
  ("```python3\nx\n```", "x\n"),
  ("```Python\nx\n```", "x\n"),
  ("```python3.11\nx\n```", "x\n"),
  ("``` python\nx\n```", "x\n"),
  ("```{.python}\nx\n```", "x\n"),
  ("~~~\nx\n~~~", "x\n"),
  ("~~~python\nx\n~~~", "x\n"),
  ("~~~python\n```\nx\n```\n~~~", "```\nx\n```\n"),
  ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
  ("````\nx\n`````", "x\n"),
  ("```python\r\nx\r\n```\r\n", "x\r\n"),
  # A list item indents its fence, and the program with it.
  ("1. So:\n   ```python\n   if x:\n     y\n   ```", "if x:\n  y\n"),
  ("- ```python\n  if x:\n    y\n  ```", "if x:\n  y\n"),
  ("  ```python\nx\n  ```", "x\n"),
  ("\t```python\n\tif x:\n\t\ty\n\t```", "if x:\n    y\n"),
  ("> ```python\nx\n```", "x\n"),
  # Thoughts hold no program, whether they end or not.
  ("<think>\n```python\na\n```\n</think>\n```python\nx\n```", "x\n"),
  ("<think>\n```python\na\n</think>\n```python\nx\n```", "x\n"),
  ("```python\na\n```\n</think>\n```python\nx\n```", "x\n"),
  ("```python\na\nhm</think>\n```python\nx\n```", "x\n"),
  ("```python\nx\n```\n<think>\n```python\na\n```", "x\n"),
  ("<think>a</think>```python\nx\n```", "x\n"),
  ("<think></think><think>a</think>\n```\nx\n```", "x\n"),
  ("```python\nx = '</think>'\n```", "x = '</think>'\n"),
  ("<think>\n```python\na\n```", None),
  ("<think>\n```python\na\n```\n</think>\n", None),
  ("```python\na\n```\n</think>\n", None),
  ("a</think>b<think>\n```python\na\n```", None),
  ("```js\na\n```", None),
  ("```pytb\na\n```", None),
  ("``python\na\n``", None),
  ("```python\na\n~~~", None),
  ("````python\na\n```", None),
]


@pytest.mark.parametrize(("text", "program"), BLOCKS)
def test_which_block_is_the_program(text, program):
  found, fault = last_program(text)
  assert found == program
  assert bool(fault) == (program is None)


def test_any_number_of_tags_and_fences_is_soon_read():
  with cpu_time.at_most(5):
    for part in ("<think></think>", "</think>", "```", "```\n", "~~~py\n", ">"):
      last_program(part * (1_000_000 // len(part)))


SAME = [
  ("0.3333333333333333", "0.333333333333"),
  ("0.30000000000000004", "0.3"),
  ("1.0", "1"),
  ("1e3", "1000"),
  ("2.50", "2.5"),
  ("100000000.5", "100000000.4"),
  ("1.0000001", "1.0"),
  (".5", "0.5"),
  ("a 1.00 b", "a 1.0 b"),
  ("-0.0", "0.0"),
]
OTHER = [
  ("101", "0101"),
  ("0101", "101"),
  ("007", "7"),
  ("+5", "5"),
  ("1_000", "1000"),
  ("1_0.5", "10.5"),
  ("1,000", "1000"),
  ("1.0000001", "1"),
  ("1000001", "1000000"),
  ("0.334", "0.333"),
  ("1e999", "2e999"),
  ("١", "1"),
  ("0x10", "16"),
  ("nan", "1.0"),
  ("1.0", "1.0 1.0"),
  ("10000000001", "10000000000"),
]


def test_outputs_with_numbers():
  for a, b in SAME:
    assert code_outputs.is_same_output(a, b), (a, b)
    assert code_outputs.is_same_output(b, a), (a, b)
  for a, b in OTHER:
    assert not code_outputs.is_same_output(a, b), (a, b)
    assert not code_outputs.is_same_output(b, a), (a, b)


def test_values_with_numbers():
  same = code_outputs.is_same_value
  assert same(0.1 + 0.2, 0.3)
  assert same([{"a": [0.1 + 0.2]}], [{"a": [0.3]}])
  assert same(3.0, 3)
  assert same(float("inf"), float("inf"))
  for a, b in (
    (3.0000001, 3),
    (10**400, 1.0),
    (float("inf"), -float("inf")),
    (float("inf"), 1e308),
    ([1], [1, 2]),
    ({"a": 1}, {"b": 1}),
    (0.31, 0.3),
    ("0.30", "0.3"),
    (None, 0.0),
  ):
    assert not same(a, b), (a, b)


def test_floats_of_calls_and_scripts(code):
  assert judged(code, call([0.1, 0.2], 0.3), "def s(a, b): return a + b").reward
  row = {"tests": [{"input": "", "output": "0.333333333333\n101"}]}
  assert judged(code, row, "print(1 / 3)\nprint(101)").reward == 1.0
  assert judged(code, row, "print(1 / 3)\nprint('0101')").reward == 0.0


@pytest.mark.parametrize(
  ("row", "said"),
  [
    (
      {"test_list": ["assert double([1]) == [2]", "assert double([]) == []"]},
      "It defines `double`, which the tests call, for example:\n\n"
      "```python\nassert double([1]) == [2]\n```",
    ),
    (
      {
        "test_list": ["assert math.isclose(half(1), 0.5)"],
        "test_imports": ["import math"],
      },
      "It defines `half`, which",
    ),
    (
      {"test_list": ["assert sum(1, 2) == 3"], "code": "def sum(a, b): pass"},
      "It defines `sum`, which",
    ),
    ({"test": "assert f(1) == g(2)"}, "It defines `f` and `g`, which"),
    (
      {"hidden_test": "assert f(77) == 1"},
      "It defines `f`, which the tests call.",
    ),
    (
      call([[1], 2], 3, "add"),
      "defines a function `add`, which is called, and reads no input. For "
      "example, `add([1], 2)` returns `3`.",
    ),
    (
      {
        "public_test_cases": '[{"input": "1", "output": "2", '
        '"testtype": "functional"}]',
        "metadata": '{"func_name": "add"}',
      },
      "`add(1)` returns `2`",
    ),
    (call([1], 2, "A.add"), "a class `A` with a method `add`"),
    (
      {"fn_name": "f", "hidden_tests": [{"input": [7, 8], "output": 9}]},
      "a function `f`, which is called with 2 arguments.",
    ),
    ({"tests": [{"input": "", "output": "2"}]}, "reads standard input"),
  ],
)
def test_the_prompt_says_what_is_called(code, row, said):
  asked = code.problem({"prompt": "q", **row}).messages[-1]["content"]
  assert said in asked
  assert ("standard input" in asked) == ("standard input" in said)
  assert "77" not in asked


ADD = "def add(a, b): return a + b"
SUBTRACT = "def add(a, b): return a - b"
ADD_ONE = "def f(x): return [x + 1]"
PYTEST = """
import pytest
from solution import add

def test_numbers():
  assert add(1, 2) == 3
  assert add(0.1, 0.2) == pytest.approx(0.3)

@pytest.mark.parametrize("a, b, c", [(1, 1, 2), (2, 2, 4)])
def test_pairs(a, b, c):
  assert add(a, b) == c

def test_error():
  with pytest.raises(TypeError):
    add(1, "x")
"""
PYTEST_MORE = """
import pytest
from solution import add

class TestAdd:
  def setup_method(self, method):
    self.one = 1

  @pytest.mark.parametrize("a", [1, pytest.param(2, id="two")])
  @pytest.mark.parametrize("b, c", [(1, 2), pytest.param(3, 4)])
  def test_products(self, a, b, c):
    assert add(a, b + c) == a + b + c + self.one - 1

def test_text_of_an_error():
  with pytest.raises(TypeError, match="unsupported") as caught:
    add(1, "x")
  assert "unsupported" in str(caught.value)
"""
UNITTEST_MORE = """
import unittest

class TestAdd(unittest.TestCase):
  def test_text_of_an_error(self):
    with self.assertRaises(TypeError) as caught:
      add(1, "x")
    self.assertIn("unsupported", str(caught.exception))
    self.assertRaisesRegex(TypeError, "unsupported", add, None, 1)

  def test_text(self):
    self.assertRegex(str(add(1, 2)), "^3$")
"""
UNITTEST = """
import unittest
from solution import add

class TestAdd(unittest.TestCase):
  def setUp(self):
    self.one = 1

  def test_sum(self):
    self.assertEqual(add(self.one, 2), 3)
    self.assertAlmostEqual(add(0.1, 0.2), 0.3)
    self.assertTrue(add(1, 1) == 2, "two")
    self.assertIn(add(1, 2), [3])

  def test_error(self):
    with self.assertRaises(TypeError):
      add(1, "x")
    self.assertRaises(TypeError, add, None, 1)

if __name__ == "__main__":
  unittest.main()
"""
CHECKER = """
def check(input, output, expected):
  a, b = map(int, output.split())
  return a + b == int(input) and expected == "any"
"""
CALL_CHECKER = """
def check(input, output, expected):
  return sorted(output) == sorted(input[0]) and expected is None
"""
BIG = "9" * 6000
# The row, a right program, a wrong one, and how many tests there are.
FIXTURES = """
import pytest
from solution import add

@pytest.fixture
def one():
  return 1

@pytest.fixture(scope="module")
def pair(one):
  values = [one, 2]
  yield values
  values.clear()

def test_add(one):
  assert add(one, 2) == 3

def test_pair(pair):
  pair.append(3)
  assert add(*pair[:2]) == 3

@pytest.mark.parametrize("x", [4, 5])
def test_several(one, x, pair):
  assert len(pair) == 2 and add(one, x) == x + 1
"""
LAYOUTS = {
  "APPS": (
    {
      "input_output": '{"fn_name": "add", "inputs": [[3, 4]], '
      '"outputs": [[7]]}'
    },
    ADD, SUBTRACT, 1,
  ),
  "pytest, fixtures": (
    {"test": FIXTURES},
    ADD, SUBTRACT, 4,
  ),
  "APPS, a list": (
    {"input_output": {"fn_name": "f", "inputs": [[3]], "outputs": [[4]]}},
    ADD_ONE, "def f(x): return [[4]]", 1,
  ),
  "TACO, texts": (
    {"input_output": {"fn_name": "f", "inputs": [["a"]], "outputs": ["ab"]}},
    "def f(x): return x + 'b'", "def f(x): return x", 1,
  ),
  "TACO, texts in lists": (
    {"input_output": {"fn_name": "f", "inputs": [["a"]], "outputs": [["ab"]]}},
    "def f(x): return x + 'b'", "def f(x): return x", 1,
  ),
  "texts that are JSON too": (
    {"tests": {"fn_name": "f", "inputs": [[7]], "outputs": ["7"]}},
    "def f(x): return str(x)", "def f(x): return 7.5", 1,
  ),
  "not all are lists of one": (
    {"tests": {"fn_name": "f", "inputs": [[1], [2]],
               "outputs": [[1], [2, 2]]}},
    "def f(x): return [x] * x", "def f(x): return x", 2,
  ),
  "APPS, a script": (
    {"input_output": '{"inputs": ["3 4"], "outputs": ["7"]}'},
    "print(sum(map(int, input().split())))", "print(8)", 1,
  ),
  "PrimeIntellect": (
    {"verification_info": '{"language": "python", "test_cases": [{"type": '
     '"function_call", "fn_name": "add", "input": [1, 2], "output": 3}]}'},
    ADD, SUBTRACT, 1,
  ),
  "PrimeIntellect, wrapped": (
    {"verification_info": {"test_cases": [
      {"type": "function_call", "fn_name": "add", "input": [1, 2],
       "output": [3]}]}},
    ADD, SUBTRACT, 1,
  ),
  "PrimeIntellect, a script": (
    {"verification_info": {"test_cases": [
      {"type": "stdin_stdout", "input": "1\n", "output": "2\n"}]}},
    "print(int(input()) + 1)", "print(1)", 1,
  ),
  "several outputs": (
    {"tests": [{"input": "", "outputs": ["1", "2"]}]},
    "print(2)", "print(3)", 1,
  ),
  "several values": (
    {"fn_name": "f", "tests": [{"input": [0], "outputs": [[1], [2]]}]},
    "def f(x): return [2]", "def f(x): return [3]", 1,
  ),
  "a checker": (
    {"tests": [{"input": "5", "output": "any"}], "checker": CHECKER},
    "print(2, 3)", "print(2, 4)", 1,
  ),
  "a checker that cannot read": (
    {"tests": [{"input": "5", "output": "any"}], "checker": CHECKER},
    "print(5, 0)", "print('x')", 1,
  ),
  "a checker of calls": (
    {"fn_name": "f", "checker": CALL_CHECKER,
     "tests": [{"input": [[1, 2]], "output": None}]},
    "def f(x): return x[::-1]", "def f(x): return x[1:]", 1,
  ),
  "a list of assertions": (
    {"tests": ["assert add(1, 2) == 3", "assert add(1, 1) == 2"]},
    ADD, SUBTRACT, 2,
  ),
  "a list of assertions as JSON": (
    {"tests": '["assert add(1, 2) == 3"]'}, ADD, SUBTRACT, 1,
  ),
  "pytest": ({"test": PYTEST}, ADD, SUBTRACT, 5),
  "unittest": ({"test": UNITTEST}, ADD, SUBTRACT, 6),
  "pytest, parameters": ({"test": PYTEST_MORE}, ADD, SUBTRACT, 6),
  "unittest, errors": ({"test": UNITTEST_MORE}, ADD, SUBTRACT, 4),
  "the text of an error": (
    {"test": PYTEST_MORE}, ADD,
    "def add(a, b):\n  if b == 'x': raise TypeError('no')\n  return a + b", 6,
  ),
  "tests of a script": (
    {"test": "if __name__ == '__main__':\n  assert add(1, 2) == 3"},
    ADD, SUBTRACT, 1,
  ),
  "a method as entry": (
    {"entry_point": "Solution().add",
     "test": "def check(candidate): assert candidate(a = 1, b = 2) == 3"},
    "class Solution:\n  def add(self, a, b): return a + b",
    "class Solution:\n  def add(self, a, b): return a - b", 1,
  ),
  "a prompt of one word": (
    {"prompt": "Add", "entry_point": "add", "test": "assert add(1, 2) == 3"},
    ADD, SUBTRACT, 1,
  ),
  "numbers as keys": (
    {"fn_name": "f", "tests": [{"input": [1], "output": {"1": True}}]},
    "def f(x): return {x: True}", "def f(x): return {x + 1: True}", 1,
  ),
  "no number": (
    {"fn_name": "f", "tests": [{"input": "1", "output": "NaN"}]},
    "def f(x): return float('nan')", "def f(x): return 0.0", 1,
  ),
  "tests that call themselves": (
    {"test": "def test(): assert add(1, 2) == 3\ntest()"}, ADD, SUBTRACT, 1,
  ),
  "big integers": (
    {"fn_name": "f", "tests": [{"input": "1", "output": BIG}]},
    "def f(x): return 10**6000 - x", "def f(x): return 10**6000", 1,
  ),
  "big integers printed": (
    {"tests": [{"input": "", "output": BIG}]},
    "print(10**6000 - 1)", "print(10**6000 - 2)", 1,
  ),
  "big integers in a test": (
    {"test_list": ["assert len(str(f(6000))) == 6000"]},
    "def f(x): return 10**x - 1", "def f(x): return 10**x", 1,
  ),
}  # fmt: skip


def test_tests_that_make_objects_of_the_program_are_refused(code):
  for row in (
    {"test": "s = Stack()\ns.push(1)\nassert s.pop() == 1"},
    {"test_list": ["assert Stack().size() == 0"]},
  ):
    with pytest.raises(ValueError, match=r"class Stack.*malformed_rows=skip"):
      code.problem({"prompt": "q", **row})
  # Classes of the test itself are no classes of the program.
  test = "class A:\n  def __init__(self): self.x = 1\nassert f(A().x) == 1"
  assert code.problem({"prompt": "q", "test": test})


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_rows(code, name):
  row, right, wrong, num_tests = LAYOUTS[name]
  verdict = judged(code, row, right)
  assert verdict.reward == 1.0, verdict
  assert verdict.details["num_tests"] == num_tests
  verdict = judged(code, row, wrong)
  assert verdict.reward == 0.0, verdict
  assert verdict.status in (Status.WRONG, Status.ERROR), verdict


@pytest.mark.parametrize(
  ("row", "solution"),
  [
    ({"test_list": ["assert add(1, 2) == 3"], "code": ADD}, ADD),
    ({"tests": [{"input": "", "output": "1"}], "solutions": ["print(1)"]},
     "print(1)"),
    ({"tests": [{"input": "", "output": "1"}], "solutions": '["print(1)", ""]'},
     "print(1)"),
    ({"tests": [{"input": "", "output": "1"}],
      "solutions": ["```python\nprint(1)\n```"]}, "print(1)"),
  ],
)  # fmt: skip
def test_reference_solutions_are_programs_that_pass(code, row, solution):
  problem = code.problem({"prompt": "q", **row})
  assert problem.solution == code_prompts.fenced(solution)
  assert code.judge(problem, problem.solution).reward == 1.0
  for solutions in ("", "[]", None, []):
    row = {"tests": [{"input": "", "output": "1"}], "solutions": solutions}
    assert code.problem({"prompt": "q", **row}).solution is None


@pytest.mark.parametrize(
  ("row", "said"),
  [
    (
      {"test": "import numpy as np\nassert np.allclose(f(1), 1)"},
      "the tests import numpy, which .* set sandbox.packages=numpy",
    ),
    (
      {"test": "def check(f):\n  assert f(1)\nfrom scipy.x import y",
       "entry_point": "f"},
      "the tests import scipy",
    ),
    (
      {"test_list": ["assert f(1)"], "test_imports": ["import numpy"]},
      "the tests import numpy",
    ),
    (
      {"tests": [{"input": "", "output": "1"}],
       "checker": "import numpy\ndef check(input, output, expected): pass"},
      "the tests import numpy",
    ),
    (
      {"tests": [{"input": "", "output": "1"}], "checker": "def f(): pass"},
      r"must define check\(input, output, expected\)",
    ),
    ({"test": "def test_f(tmp_path):\n  assert f(1)"}, "fixture tmp_path, wh"),
    (
      {"test": "@pytest.fixture\ndef a(a): pass\ndef test_f(a): assert f(a)"},
      "fixture a, which",
    ),
    (
      {"tests": [{"input": "", "output": "1"}], "solutions": "{"},
      "solutions is no JSON",
    ),
  ],
)  # fmt: skip
def test_tests_that_cannot_run_are_refused_with_the_cure(code, row, said):
  with pytest.raises(ValueError, match=said):
    code.problem({"prompt": "q", **row})


def test_tests_that_break_later_are_said_once(code, capsys):
  row = {"test": "def f(): import no_such_module\nf()\nassert add(1, 2) == 3"}
  for _ in range(2):
    verdict = judged(code, row, ADD)
    assert verdict.status is Status.CRASHED
    assert "no_such_module" in verdict.details["error"]
  said = capsys.readouterr().err
  assert said.count("no_such_module") == 1
  assert "sandbox.packages=numpy" in said
  broken = "def check(input, output, expected): return no_such_name"
  row = {"tests": [{"input": "", "output": "1"}], "checker": broken}
  verdict = judged(code, row, "print(1)")
  assert verdict.status is Status.CRASHED
  assert "the checker is broken: NameError" in capsys.readouterr().err


def test_a_checker_sees_no_more_than_it_is_given(code):
  """What a program prints or leaves behind is data, and nothing else."""
  checker = (
    "import os\ndef check(input, output, expected):\n"
    "  return output == 'right' and not os.listdir('/tmp')"
  )
  row = {"tests": [{"input": "", "output": "x"}], "checker": checker}
  for program in (
    "print('True')",
    "print('wrong'); open('/tmp/check.py', 'w').write('x')",
    "import builtins; builtins.check = lambda *x: True; print(1)",
    'import os; os.write(3, b\'{"value": ["bool", true]}\'); os._exit(0)',
  ):
    assert judged(code, row, program).reward == 0.0, program


def test_numpy_is_one_setting():
  pytest.importorskip("numpy")
  row = {
    "test": "import numpy as np\nassert np.allclose(f(1), [1, 1])",
  }
  with sandboxes.make(num_processes=1, packages="numpy") as sandbox:
    environment = Code(CodeConfig(seconds=20.0), sandbox)
    right = "import numpy\ndef f(x): return numpy.full(2, x)"
    assert judged(environment, row, right).reward == 1.0
    wrong = "def f(x): return [1, 2]"
    assert judged(environment, row, wrong).status is Status.WRONG
    assert not sandbox.can_import("jax")
  with pytest.raises(sandboxes.SandboxError, match="no_such_package"):
    sandboxes.make(packages="no_such_package")
