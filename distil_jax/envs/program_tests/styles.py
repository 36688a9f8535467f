"""Rewrites tests for pytest and unittest as plain assertions.

The sandbox counts assertions and calls the program for the values in them. It
has no pytest, and methods such as `assertEqual` are no assertions to it.
"""

import ast
import builtins
from collections.abc import Mapping, Sequence

from distil_jax.envs.program_tests import fixtures as test_fixtures

# Modules that stand for the program in data sets.
_PROGRAMS = frozenset({"solution", "main", "program", "submission", "code"})
_COMPARED = {
  "assertEqual": ast.Eq,
  "assertEquals": ast.Eq,
  "assertListEqual": ast.Eq,
  "assertDictEqual": ast.Eq,
  "assertTupleEqual": ast.Eq,
  "assertSetEqual": ast.Eq,
  "assertSequenceEqual": ast.Eq,
  "assertMultiLineEqual": ast.Eq,
  "assertNotEqual": ast.NotEq,
  "assertIs": ast.Is,
  "assertIsNot": ast.IsNot,
  "assertIn": ast.In,
  "assertNotIn": ast.NotIn,
  "assertLess": ast.Lt,
  "assertLessEqual": ast.LtE,
  "assertGreater": ast.Gt,
  "assertGreaterEqual": ast.GtE,
}
# Texts in which `a`, `b` and `c` stand for the arguments.
_WRITTEN = {
  "assertTrue": "a",
  "assertFalse": "not a",
  "assertIsNone": "a is None",
  "assertIsNotNone": "a is not None",
  "assertIsInstance": "isinstance(a, b)",
  "assertNotIsInstance": "not isinstance(a, b)",
  "assertRegex": "__import__('re').search(b, a) is not None",
  "assertNotRegex": "__import__('re').search(b, a) is None",
  "assertCountEqual": "sorted(a, key=repr) == sorted(b, key=repr)",
  "assertAlmostEqual": "round(abs((a) - (b)), 7) == 0",
}
# What `raises(…) as name` leaves in the name, for pytest and for unittest.
_CAUGHT = """\
class _Caught:
  def __init__(self, error):
    self.value = self.exception = error
    self.type = type(error)
"""
# What `pytest.approx` does, as far as tests of programs need it.
_APPROX = """\
def _approx(value, rel=1e-6, abs=1e-12, nan_ok=False):
  import math
  class Approx:
    def __init__(self, value): self.value = value
    def __repr__(self): return f"about {self.value!r}"
    def __eq__(self, other):
      if isinstance(self.value, (list, tuple)):
        return len(other) == len(self.value) and all(
          x == Approx(y) for x, y in zip(other, self.value))
      if isinstance(self.value, dict):
        return other.keys() == self.value.keys() and all(
          other[key] == Approx(y) for key, y in self.value.items())
      return math.isclose(other, self.value, rel_tol=rel, abs_tol=abs)
  return Approx(value)
"""


def plain(source: str) -> tuple[str, tuple[str, ...]]:
  """Rewrites tests, if they are written for pytest or unittest.

  Returns:
    The source, and names that it imports from the program. Other tests come
    back as they are.

  Raises:
    ValueError: They use something that is not known here, such as a fixture.
  """
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return source, ()
  fixtures = test_fixtures.take(tree.body)
  functions = [
    x
    for x in tree.body
    if isinstance(x, ast.FunctionDef) and _is_test(x) and x.name not in fixtures
  ]
  classes = [x for x in tree.body if isinstance(x, ast.ClassDef) and _tests(x)]
  if not functions and not classes:
    return source, ()
  called = {
    x.func.id
    for statement in tree.body
    if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
    for x in ast.walk(statement)
    if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)
  }
  rewriter = _Rewriter()
  drivers: list[ast.stmt] = []
  for function in functions:
    # A file that calls its tests itself needs no other call.
    if function.name not in called:
      drivers += _driver(function, function.name, fixtures)
  for found in classes:
    drivers += _class_drivers(found, fixtures)
  body = [x for x in tree.body if not _is_main(x)]
  tree = ast.Module([*body, *drivers], [])
  tree = ast.fix_missing_locations(rewriter.visit(tree))
  text = ast.unparse(tree)
  text = _APPROX + text if rewriter.uses_approx else text
  text = _CAUGHT + text if rewriter.keeps_errors else text
  return text, tuple(rewriter.names)


def check_makes_no_objects(source: str, prelude: str) -> None:
  """Refuses tests that make objects of classes of the program.

  The program runs in another process, which is asked for plain values only: a
  right program would fail such tests.

  Raises:
    ValueError: Names the class.
  """
  try:
    tree = ast.parse(f"{prelude}\n{source}")
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return
  nodes = list(ast.walk(tree))
  bound = {x.asname or x.name for x in nodes if isinstance(x, ast.alias)}
  bound |= {
    x.name for x in nodes if isinstance(x, ast.ClassDef | ast.FunctionDef)
  }
  bound |= {
    x.id
    for x in nodes
    if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
  }
  for node in nodes:
    called = node.func if isinstance(node, ast.Call) else None
    if (
      isinstance(called, ast.Name)
      and called.id[0].isupper()
      and called.id not in bound
      and not hasattr(builtins, called.id)
      # A test by `from x import *` may have it.
      and "*" not in bound
    ):
      raise ValueError(
        f"the tests make objects of the program's class {called.id}, and only "
        "functions can be tested; set data.malformed_rows=skip to leave such "
        "rows out"
      )


def _is_test(node: ast.stmt) -> bool:
  return isinstance(node, ast.FunctionDef) and node.name.startswith("test")


def _tests(node: ast.ClassDef) -> list[ast.FunctionDef]:
  return [
    x for x in node.body if isinstance(x, ast.FunctionDef) and _is_test(x)
  ]


def _is_main(node: ast.stmt) -> bool:
  """Returns True for `if __name__ == "__main__": unittest.main()`."""
  if isinstance(node, ast.If):
    return "__name__" in ast.unparse(node.test)
  text = ast.unparse(node)
  return text.startswith(("unittest.main(", "pytest.main("))


def _driver(
  function: ast.FunctionDef,
  called: str,
  fixtures: Mapping[str, ast.FunctionDef],
) -> list[ast.stmt]:
  """Returns statements that call a test, once for each of its parameters."""
  cases = []
  for decorator in function.decorator_list:
    if not isinstance(decorator, ast.Call) or not ast.unparse(
      decorator.func
    ).endswith("mark.parametrize"):
      continue
    cases.append(decorator)
  names = [x.arg for x in function.args.args if x.arg != "self"]
  num_defaults = len(function.args.defaults)
  given = [_parameters(x) for x in cases]
  values = {name: name for fields in given for name in fields}
  needed = names[: len(names) - num_defaults]
  values |= {
    x: test_fixtures.value(x, fixtures) for x in needed if x not in values
  }
  text = ", ".join(f"{name}={value}" for name, value in values.items())
  text = f"{called}({text})"
  if cases:
    for fields, case in zip(given, cases, strict=True):
      values = ast.unparse(_Parameters().visit(case.args[1]))
      lines = text.replace("\n", "\n  ")
      text = f"for {', '.join(fields)} in {values}:\n  {lines}"
  function.decorator_list = []
  return ast.parse(text).body


def _parameters(case: ast.Call) -> list[str]:
  """Returns the names of a `parametrize`."""
  given = ast.literal_eval(case.args[0])
  return (
    [x.strip() for x in given.split(",") if x.strip()]
    if isinstance(given, str)
    else list(given)
  )


class _Parameters(ast.NodeTransformer):
  """Writes `pytest.param(1, 2, id="a")` as its values."""

  def visit_Call(self, node: ast.Call) -> ast.AST:
    self.generic_visit(node)
    if ast.unparse(node.func) not in ("pytest.param", "param"):
      return node
    is_one = len(node.args) == 1
    return node.args[0] if is_one else ast.Tuple(node.args, ast.Load())


def _class_drivers(
  found: ast.ClassDef, fixtures: Mapping[str, ast.FunctionDef]
) -> list[ast.stmt]:
  methods = {x.name: x for x in found.body if isinstance(x, ast.FunctionDef)}
  is_case = any("TestCase" in ast.unparse(x) for x in found.bases)
  drivers: list[ast.stmt] = []
  if "setUpClass" in methods:
    drivers += ast.parse(f"{found.name}.setUpClass()").body
  for test in _tests(found):
    name = repr(test.name) if is_case else ""
    lines = [f"_tests = {found.name}({name})"]
    lines += [
      # pytest passes the method if there is a parameter for it.
      f"_tests.{x}({'None' if len(methods[x].args.args) > 1 else ''})"
      for x in ("setUp", "setup_method")
      if x in methods
    ]
    drivers += ast.parse("\n".join(lines)).body
    drivers += _driver(test, f"_tests.{test.name}", fixtures)
  return drivers


class _Rewriter(ast.NodeTransformer):
  """Writes methods of unittest and pytest as assertions."""

  def __init__(self):
    self.names: list[str] = []
    self.uses_approx = self.keeps_errors = False

  def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
    if node.module in _PROGRAMS:
      self.names += [x.name for x in node.names if x.name != "*"]
      return None
    return None if node.module == "pytest" else node

  def visit_Import(self, node: ast.Import) -> ast.AST | None:
    kept = [x for x in node.names if x.name != "pytest"]
    node.names = kept
    return node if kept else None

  def visit_Call(self, node: ast.Call) -> ast.AST:
    self.generic_visit(node)
    if ast.unparse(node.func) in ("pytest.approx", "approx"):
      self.uses_approx = True
      node.func = ast.Name("_approx", ast.Load())
    return node

  def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.stmt]:
    self.generic_visit(node)
    call = node.value
    if not isinstance(call, ast.Call) or not (
      isinstance(call.func, ast.Attribute)
    ):
      return node
    name, args = call.func.attr, call.args
    if name in ("assertRaises", "raises") and len(args) > 1:
      body = ast.Expr(ast.Call(args[1], args[2:], call.keywords))
      return _raises(args[0], [body])
    if name == "assertRaisesRegex" and len(args) > 2:
      body = ast.Expr(ast.Call(args[2], args[3:], call.keywords))
      return _raises(args[0], [body], pattern=args[1])
    test = _test(name, args, call.keywords)
    return node if test is None else ast.Assert(test, None)

  def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
    self.generic_visit(node)
    call = node.items[0].context_expr
    is_raises = isinstance(call, ast.Call) and ast.unparse(call.func) in (
      "self.assertRaises",
      "self.assertRaisesRegex",
      "pytest.raises",
      "raises",
    )
    if not isinstance(call, ast.Call) or not is_raises or not call.args:
      return node
    pattern = next((x.value for x in call.keywords if x.arg == "match"), None)
    if ast.unparse(call.func) == "self.assertRaisesRegex":
      pattern = call.args[1] if len(call.args) > 1 else pattern
    kept = node.items[0].optional_vars
    self.keeps_errors |= kept is not None
    return _raises(call.args[0], node.body, pattern, kept)


def _test(
  name: str, args: Sequence[ast.expr], keywords: Sequence[ast.keyword]
) -> ast.expr | None:
  """Returns the condition that a method of unittest asserts, or None."""
  if name in _COMPARED and len(args) > 1:
    return ast.Compare(args[0], [_COMPARED[name]()], [args[1]])
  if name not in _WRITTEN or not args:
    return None
  text = _WRITTEN[name]
  if name == "assertAlmostEqual":
    named = {x.arg: ast.unparse(x.value) for x in keywords}
    if "delta" in named:
      text = f"abs((a) - (b)) <= {named['delta']}"
    elif "places" in named or len(args) > 2:
      places = named.get("places") or ast.unparse(args[2])
      text = f"round(abs((a) - (b)), {places}) == 0"
  values = dict(zip("abc", args, strict=False))
  return _Filled(values).visit(ast.parse(text, mode="eval").body)


class _Filled(ast.NodeTransformer):
  """Puts expressions in the place of names."""

  def __init__(self, values: dict[str, ast.expr]):
    self._values = values

  def visit_Name(self, node: ast.Name) -> ast.AST:
    return self._values.get(node.id, node)


def _raises(
  kind: ast.expr,
  body: Sequence[ast.stmt],
  pattern: ast.expr | None = None,
  kept: ast.expr | None = None,
) -> list[ast.stmt]:
  """Returns statements that assert that others raise.

  Args:
    kind: The exception, or several.
    body: The statements.
    pattern: What the text of the exception must match; None: anything.
    kept: Variable that later statements read the exception from.
  """
  shown = "_".join(x for x in ast.unparse(kind).split() if x.isidentifier())
  name = f"raises_{shown or 'error'}"
  text = f"{name} = False\ntry:\n  pass\nexcept X as _error:\n"
  if pattern is None:
    text += f"  {name} = True\n"
  else:
    matches = f"__import__('re').search({ast.unparse(pattern)}, str(_error))"
    text += f"  {name} = {matches} is not None\n"
  if kept is not None:
    text += f"  {ast.unparse(kept)} = _Caught(_error)\n"
  tree = ast.parse(f"{text}assert {name}")
  attempt = tree.body[1]
  assert isinstance(attempt, ast.Try)
  attempt.body, attempt.handlers[0].type = list(body), kind
  return tree.body
