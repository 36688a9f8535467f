"""Reads the tests of programs from data rows.

These layouts are known:

  assertions     `test` with `entry_point` (HumanEval), also for pytest and
                 unittest; `test_list` with `test_setup_code` or `test_imports`,
                 and `code` (MBPP); or `tests`, a list of texts
  cases          `tests`: a list of `{input, output, testtype}`, or
                 `{inputs, outputs, fn_name}`, as an object or as JSON text;
                 `input_output` (APPS, TACO) and `verification_info` with
                 `test_cases` (PrimeIntellect) likewise; `checker` if several
                 outputs are right
  LiveCodeBench  `public_test_cases` and `private_test_cases`: such lists, the
                 latter perhaps packed; `metadata` with `func_name`
  hidden tests   `hidden_tests` and `hidden_test`: as `tests` and `test`
"""

import ast
import builtins
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.envs import rows
from distil_jax.envs.program_tests import in_place
from distil_jax.envs.program_tests import json_values as code_json
from distil_jax.envs.program_tests import styles as code_test_styles

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", re.ASCII)
_ENTRY_METHOD = re.compile(r"\(\)\.")
_KINDS = {"function_call": "functional", "stdin_stdout": "stdin"}


@dataclasses.dataclass(frozen=True)
class Case:
  """One test: a run of the program as a script, or a call of a function.

  Attributes:
    input: Standard input of the script; or the arguments, one line of JSON for
      each.
    output: Expected standard output; or the expected value as JSON.
    function: Name of the function, `A.f` for a method of `A()`; None means that
      the program runs as a script.
    is_hidden: If True, feedback must not show the test's content.
    others: Other right outputs, in the form of the first one.
    changes_argument: If True, the expected value is the first argument as a
      function leaves it that returns nothing.
    checker: Python that defines `check(input, output, expected)`, which returns
      True if an output is right; empty if outputs are compared.
  """

  input: str
  output: str
  function: str | None = None
  is_hidden: bool = False
  others: tuple[str, ...] = ()
  checker: str = ""
  changes_argument: bool = False

  @property
  def arguments(self) -> tuple[Any, ...]:
    """Returns the arguments of the call."""
    lines = filter(str.strip, self.input.split("\n"))
    return tuple(map(code_json.decoded, lines))

  @property
  def outputs(self) -> tuple[str, ...]:
    """Returns all right outputs."""
    return (self.output, *self.others)


@dataclasses.dataclass(frozen=True)
class Asserts:
  """A test in Python whose assertions call the program's functions.

  Attributes:
    source: The test.
    prelude: Python that runs before it.
    names: Names of the program's functions.
    is_hidden: If True, feedback must not show the test's content.
  """

  source: str
  prelude: str = ""
  names: tuple[str, ...] = ()
  is_hidden: bool = False


def read(row: Mapping[str, Any]) -> list[Case | Asserts]:
  """Returns all tests of a row, hidden ones last.

  Raises:
    ValueError: There are none, or one is malformed.
  """
  found: list[Case | Asserts] = []
  name, checker = _function_name(row), _checker(row)
  changes_argument = in_place.is_asked(
    rows.text(row, "starter_code") or "", row.get("prompt")
  )
  for field, is_hidden in (
    ("tests", False),
    ("input_output", False),
    ("verification_info", False),
    ("public_test_cases", False),
    ("hidden_tests", True),
    ("private_test_cases", True),
  ):
    value = code_json.read(row.get(field), field)
    if _is_texts(value):
      found += _asserts(row, "\n".join(value), is_hidden)
      continue
    cases = _cases(value, field, name)
    found += [
      dataclasses.replace(
        case,
        is_hidden=is_hidden,
        checker=checker,
        changes_argument=changes_argument and case.function is not None,
      )
      for case in cases
    ]
  for field, is_hidden in (("test", False), ("hidden_test", True)):
    source = rows.text(row, field)
    if source and source.strip():
      found += _asserts(row, source, is_hidden)
  found += _listed(row)
  if not found:
    raise ValueError(
      "the row has no test: tests, hidden_tests, test, hidden_test, test_list, "
      "public_test_cases or private_test_cases"
    )
  return sorted(found, key=lambda test: test.is_hidden)


def as_data(tests: Sequence[Case | Asserts]) -> list[dict[str, Any]]:
  """Converts tests to JSON, for a problem's details."""
  return [dataclasses.asdict(test) for test in tests]


def from_data(data: Sequence[Mapping[str, Any]]) -> list[Case | Asserts]:
  """Converts the JSON of `as_data` back to tests."""
  return [
    Asserts(**{**test, "names": tuple(test["names"])})
    if "source" in test
    else Case(**{**test, "others": tuple(test["others"])})
    for test in data
  ]


def _is_texts(value: Any) -> bool:
  return (
    isinstance(value, list)
    and bool(value)
    and (all(isinstance(x, str) for x in value))
  )


def _checker(row) -> str:
  """Returns the source of the row's function that compares outputs."""
  source = rows.text(row, "checker") or ""
  if source and not re.search(r"^def check\(", source, re.MULTILINE):
    raise ValueError(
      "checker must define check(input, output, expected), a function that "
      "returns True if an output is right"
    )
  return source


def _asserts(row, source: str, is_hidden: bool) -> list[Asserts]:
  """Reads a test as in HumanEval: `check` is called with the function."""
  source, imported = code_test_styles.plain(source)
  if not _has_assertion(source):
    raise ValueError("the test has no assert statement")
  entry = rows.text(row, "entry_point")
  prelude = "\n".join([*_setup(row), ""]).strip()
  code_test_styles.check_makes_no_objects(source, prelude)
  if not entry:
    names = (*_named_as_builtins(row), *imported)
    return [Asserts(source, prelude, names, is_hidden=is_hidden)]
  # LeetCode's rows have a method, `Solution().f`.
  entry = _ENTRY_METHOD.sub(".", entry)
  if not _NAME.fullmatch(entry):
    raise ValueError(
      f"entry_point {entry!r} is no name of a function or of a method, such as "
      "Solution().f"
    )
  if "def check" in source:
    source = f"{source}\n\ncheck({entry.replace('.', '_')})\n"
  prelude = "\n".join(x for x in (prelude, _prelude(row)) if x)
  names = tuple(dict.fromkeys([entry, *imported]))
  return [Asserts(source, prelude, names, is_hidden=is_hidden)]


def _setup(row) -> list[str]:
  """Returns what MBPP's tests need before them."""
  imports = row.get("test_imports") or []
  if not isinstance(imports, list) or not all(
    isinstance(x, str) for x in imports
  ):
    raise ValueError("test_imports must be a list of texts")
  setup = rows.text(row, "test_setup_code")
  return [*imports, setup] if setup else imports


def _has_assertion(source: str) -> bool:
  try:
    nodes = ast.walk(ast.parse(source))
  except (SyntaxError, ValueError):
    return True  # The sandbox's Python may be newer and will report it if not.
  return any(isinstance(node, ast.Assert) for node in nodes)


def _prelude(row) -> str:
  """Returns the prompt if it is Python: tests may use what it defines."""
  prompt = rows.text(row, "prompt") or ""
  # HumanEval's prompts begin the program; prompts of other data are prose, of
  # which a single word is Python too.
  if not re.search(r"^(?:def|class|import|from)\b", prompt, re.MULTILINE):
    return ""
  try:
    compile(prompt, "prompt", "exec")
  except (SyntaxError, ValueError):
    return ""
  return prompt


def _listed(row) -> list[Asserts]:
  """Reads tests as in MBPP: a list of assertions."""
  asserts = row.get("test_list")
  if asserts is None:
    return []
  if not isinstance(asserts, list) or not all(
    isinstance(text, str) for text in asserts
  ):
    raise ValueError("test_list must be a list of texts")
  prelude = "\n".join(_setup(row))
  if not asserts:
    return []
  names = _named_as_builtins(row)
  code_test_styles.check_makes_no_objects("\n".join(asserts), prelude)
  return [Asserts("\n".join(asserts), prelude=prelude.strip(), names=names)]


def _named_as_builtins(row) -> tuple[str, ...]:
  """Returns functions of the reference solution that are named as built-ins.

  Tests that call `sum` mean Python's, unless the program is to define one.
  """
  solution = rows.text(row, "code") or rows.text(row, "solution") or ""
  try:
    tree = ast.parse(solution)
  except (SyntaxError, ValueError):
    return ()
  return tuple(
    node.name
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and hasattr(builtins, node.name)
  )


def _function_name(row) -> str | None:
  metadata = code_json.read(row.get("metadata"), "metadata") or {}
  if not isinstance(metadata, Mapping):
    raise ValueError("metadata must be an object")
  found = row.get("fn_name") or metadata.get("func_name")
  return None if found is None else _checked_name(found)


def _checked_name(name: Any) -> str:
  if not isinstance(name, str) or not _NAME.fullmatch(name):
    raise ValueError(f"{name!r} is no name of a function")
  return name


def _cases(value: Any, field: str, name: str | None) -> list[Case]:
  if value is None:
    return []
  if isinstance(value, Mapping):
    # PrimeIntellect's rows have the language beside the tests.
    inner = code_json.read(value.get("test_cases"), field)
    if inner is None:
      value, name = _listed_apart(value, field, name)
    else:
      value = inner
  if not isinstance(value, list):
    raise ValueError(f"{field} must be a list of tests")
  cases = [_case(test, f"{field}[{i}]", name) for i, test in enumerate(value)]
  return _unwrapped(cases)


def _unwrapped(cases: list[Case]) -> list[Case]:
  """Lets a value stand in a list of its own, as in all rows of APPS and TACO.

  A row where one value is no list of one is written in another way.
  """
  values: list[Any] = [
    x.function and code_json.decoded(x.output) for x in cases
  ]
  if not all(isinstance(x, list) and len(x) == 1 for x in values):
    return cases
  return [
    dataclasses.replace(case, others=(*case.others, _encoded(value[0])))
    for case, value in zip(cases, values, strict=True)
  ]


def _encoded(value: Any) -> str:
  try:
    return json.dumps(value)
  except ValueError:
    raise ValueError(
      "an integer in the tests has more digits than Python writes; give the "
      "value as a text of JSON"
    ) from None


def _listed_apart(value, field: str, name: str | None):
  """Reads inputs and outputs that stand in two lists."""
  inputs, outputs = value.get("inputs"), value.get("outputs")
  if not isinstance(inputs, list) or not isinstance(outputs, list):
    raise ValueError(f"{field} must have inputs and outputs, two lists")
  if len(inputs) != len(outputs):
    raise ValueError(
      f"{field} has {len(inputs)} inputs and {len(outputs)} outputs"
    )
  if value.get("fn_name"):
    name = _checked_name(value["fn_name"])
  # A name says that a function is called, even where no kind is given.
  kind = value.get("testtype") or ("functional" if name else "stdin")
  tests = [
    {"input": x, "output": y, "testtype": kind}
    for x, y in zip(inputs, outputs, strict=True)
  ]
  return tests, name


def _case(test: Any, where: str, name: str | None) -> Case:
  if not isinstance(test, Mapping):
    raise ValueError(f"{where} must have input and output")
  several = test.get("outputs")
  has_output = "output" in test or (isinstance(several, list) and several)
  if "input" not in test or not has_output:
    raise ValueError(f"{where} must have input and output")
  wanted: list[Any] = [test["output"]] if "output" in test else several or []
  if test.get("fn_name"):
    name = _checked_name(test["fn_name"])
  kind = test.get("testtype") or _KINDS.get(str(test.get("type")))
  kind = kind or ("functional" if name else "stdin")
  given = test["input"]
  if kind == "stdin":
    given, wanted = _lines(given), [_lines(x) for x in wanted]
    if not isinstance(given, str) or not _is_texts(wanted):
      raise ValueError(f"{where}: input and output must be texts")
    return Case(given, wanted[0], others=tuple(wanted[1:]))
  if kind != "functional":
    raise ValueError(f"{where}: testtype {kind!r} is not stdin or functional")
  if name is None:
    raise ValueError(f"{where}: no func_name or fn_name says what to call")
  # Some data sets have the arguments as values, others as JSON text.
  is_value = not isinstance(given, str)
  if is_value:
    given = "\n".join(map(_encoded, given))
  outputs = [text for x in wanted for text in _outputs(x, is_value)]
  case = Case(given, outputs[0], function=name, others=tuple(outputs[1:]))
  try:
    _ = case.arguments
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where}: no JSON: {error}") from None
  return case


def _outputs(value: Any, is_value: bool) -> list[str]:
  """Returns the JSON of an expected value; a text may be JSON, or be itself."""
  if not isinstance(value, str):
    return [_encoded(value)]
  try:
    code_json.decoded(value)
  except (ValueError, RecursionError):
    return [json.dumps(value)]
  # Beside arguments that are values, a text may be a value too.
  return [value, json.dumps(value)] if is_value else [value]


def _lines(value: Any) -> Any:
  """Joins the lines of a text, which some data sets have in a list."""
  if isinstance(value, list) and all(isinstance(x, str) for x in value):
    return "\n".join(value)
  return value
