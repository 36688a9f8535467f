"""Reads the tests of programs from data rows.

Four layouts are known:

  assertions     `test` with `entry_point` (HumanEval), or `test_list` with
                 `test_setup_code` or `test_imports`, and `code` (MBPP)
  cases          `tests`: a list of `{input, output, testtype}`, or
                 `{inputs, outputs, fn_name}`, as an object or as JSON text
  LiveCodeBench  `public_test_cases` and `private_test_cases`: such lists, the
                 latter perhaps packed; `metadata` with `func_name`
  hidden tests   `hidden_tests` and `hidden_test`: as `tests` and `test`
"""

import ast
import base64
import binascii
import builtins
import dataclasses
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.envs import rows

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", re.ASCII)
_MAX_UNPACKED = 256 << 20


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
  """

  input: str
  output: str
  function: str | None = None
  is_hidden: bool = False

  @property
  def arguments(self) -> tuple[Any, ...]:
    """Returns the arguments of the call."""
    lines = filter(str.strip, self.input.split("\n"))
    return tuple(json.loads(line) for line in lines)


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
  name = _function_name(row)
  for field, is_hidden in (
    ("tests", False),
    ("public_test_cases", False),
    ("hidden_tests", True),
    ("private_test_cases", True),
  ):
    cases = _cases(row.get(field), field, name)
    found += [dataclasses.replace(case, is_hidden=is_hidden) for case in cases]
  for field, is_hidden in (("test", False), ("hidden_test", True)):
    source = rows.text(row, field)
    if source and source.strip():
      found.append(_asserts(row, source, is_hidden))
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
    else Case(**test)
    for test in data
  ]


def _asserts(row, source: str, is_hidden: bool) -> Asserts:
  """Reads a test as in HumanEval: `check` is called with the function."""
  if not _has_assertion(source):
    raise ValueError("the test has no assert statement")
  entry = rows.text(row, "entry_point")
  if not entry:
    return Asserts(source, is_hidden=is_hidden)
  if not entry.isidentifier():
    raise ValueError(f"entry_point {entry!r} is no name")
  return Asserts(
    source=f"{source}\n\ncheck({entry})\n",
    prelude=_prelude(row),
    names=(entry,),
    is_hidden=is_hidden,
  )


def _has_assertion(source: str) -> bool:
  try:
    nodes = ast.walk(ast.parse(source))
  except (SyntaxError, ValueError):
    return True  # The sandbox's Python may be newer and will report it if not.
  return any(isinstance(node, ast.Assert) for node in nodes)


def _prelude(row) -> str:
  """Returns the prompt if it is Python: tests may use what it defines."""
  prompt = rows.text(row, "prompt") or ""
  try:
    # HumanEval's prompts begin the program; prompts of other data are prose.
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
  imports = row.get("test_imports") or []
  if not isinstance(imports, list):
    raise ValueError("test_imports must be a list of texts")
  prelude = "\n".join([*imports, rows.text(row, "test_setup_code") or ""])
  if not asserts:
    return []
  names = _named_as_builtins(row)
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
  metadata = _json(row.get("metadata"), "metadata") or {}
  if not isinstance(metadata, Mapping):
    raise ValueError("metadata must be an object")
  found = row.get("fn_name") or metadata.get("func_name")
  return None if found is None else _checked_name(found)


def _checked_name(name: Any) -> str:
  if not isinstance(name, str) or not _NAME.fullmatch(name):
    raise ValueError(f"{name!r} is no name of a function")
  return name


def _cases(value: Any, field: str, name: str | None) -> list[Case]:
  value = _json(value, field)
  if value is None:
    return []
  if isinstance(value, Mapping):
    value, name = _listed_apart(value, field, name)
  if not isinstance(value, list):
    raise ValueError(f"{field} must be a list of tests")
  return [_case(test, f"{field}[{i}]", name) for i, test in enumerate(value)]


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
  if not isinstance(test, Mapping) or not {"input", "output"} <= set(test):
    raise ValueError(f"{where} must have input and output")
  kind = test.get("testtype") or ("functional" if name else "stdin")
  given, wanted = test["input"], test["output"]
  if kind == "stdin":
    given, wanted = _lines(given), _lines(wanted)
    if not isinstance(given, str) or not isinstance(wanted, str):
      raise ValueError(f"{where}: input and output must be texts")
    return Case(given, wanted)
  if kind != "functional":
    raise ValueError(f"{where}: testtype {kind!r} is not stdin or functional")
  if name is None:
    raise ValueError(f"{where}: no func_name or fn_name says what to call")
  # Some data sets have the arguments as values, others as JSON text.
  if not isinstance(given, str):
    given = "\n".join(json.dumps(x) for x in given)
  if not isinstance(wanted, str):
    wanted = json.dumps(wanted)
  case = Case(given, wanted, function=name)
  try:
    json.loads(case.output)
    _ = case.arguments
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where}: no JSON: {error}") from None
  return case


def _lines(value: Any) -> Any:
  """Joins the lines of a text, which some data sets have in a list."""
  if isinstance(value, list) and all(isinstance(x, str) for x in value):
    return "\n".join(value)
  return value


def _json(value: Any, field: str) -> Any:
  """Decodes JSON text, also if it is packed as in LiveCodeBench."""
  if not isinstance(value, str):
    return value
  if not value.strip():
    return None
  try:
    return json.loads(value)
  except ValueError:
    pass
  try:
    return json.loads(_unpacked(value))
  except (ValueError, binascii.Error, zlib.error, pickle.UnpicklingError):
    raise ValueError(f"{field} is no JSON") from None


class _TextOnly(pickle.Unpickler):
  """Unpickles texts alone, because other objects could run programs."""

  def find_class(self, module_name: str, global_name: str) -> Any:
    raise pickle.UnpicklingError(f"{module_name}.{global_name} is no text")


def _unpacked(text: str) -> str:
  unpacker = zlib.decompressobj()
  # A few bytes can unpack to more than fits into memory.
  data = unpacker.decompress(
    # Without validation other characters would be skipped silently.
    base64.b64decode(text, validate=True),
    _MAX_UNPACKED,
  )
  if unpacker.unconsumed_tail:
    raise ValueError("too long")
  found = _TextOnly(io.BytesIO(data)).load()
  if not isinstance(found, str):
    raise ValueError("no text")
  return found
