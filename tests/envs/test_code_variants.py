"""Tables of rows and programs of many kinds, right and wrong."""

import pytest

from distil_jax.config.environments import CodeConfig
from distil_jax.envs import code_outputs, code_prompts
from distil_jax.envs import sandbox as sandboxes
from distil_jax.envs.code import Code, last_program
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
