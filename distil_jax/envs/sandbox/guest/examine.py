"""Runs tests that call a program in another process.

The tests and their expected values are in this process and the program is not:
it is asked for values over a channel, so that it cannot affect a comparison.
"""

import ast
import builtins
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from distil_jax.envs.sandbox.guest import programs, values

_FILE = "tests.py"
_MAX_FAILURES = 2
_MAX_SHOWN = 300
_MAX_ANSWER = 8 << 20


# These are no `Exception`, so that no `except Exception` of a test catches
# them.
class GoneError(BaseException):
  """Means that the program has ended and cannot be called any more."""


class StoppedError(BaseException):
  """Means that the program raised although no test expects it."""


class UnaskableError(BaseException):
  """Means that a test calls the program with values that are not plain."""


class _Program:
  """Represents the program by functions that call it in its own process."""

  def __init__(self, channel: int):
    self._channel = channel
    self._answers = os.fdopen(channel, "rb", closefd=False)
    self.last: dict[str, Any] | None = None
    self.num_calls = 0

  def function(self, name: str):
    def call(*args: Any, **kwargs: Any) -> Any:
      return self._ask(name, args, kwargs)

    def changing(*args: Any, **kwargs: Any) -> Any:
      return self._ask(name, args, kwargs, is_for_effect=True)

    call.__name__ = name
    call.changing = changing
    return call

  def _ask(self, name, args, kwargs, is_for_effect: bool = False) -> Any:
    self.last = {"call": _call_text(name, args, kwargs)}
    self.num_calls += 1
    try:
      question = {
        "name": name,
        "args": [values.encode(x) for x in args],
        "kwargs": {k: values.encode(v) for k, v in kwargs.items()},
        "is_for_effect": is_for_effect,
      }
    except values.PlainError as error:
      raise UnaskableError(f"{self.last['call']}: {error}") from None
    try:
      programs._write(self._channel, json.dumps(question).encode() + b"\n")
      # A program could answer without end.
      line = self._answers.readline(_MAX_ANSWER)
    except OSError:
      line = b""
    if not line.endswith(b"\n"):
      raise GoneError
    raised = None
    try:
      answer = json.loads(line)
      if "value" in answer:
        value = values.decode(answer["value"])
        self.last["returned"] = _shown(value)
        if is_for_effect:
          _change((*args, *kwargs.values()), answer["changed"])
        return value
      if "raised" in answer:
        self.last["raised"] = answer["raised"]
        raised = _exception(answer["raised"])
      else:
        self.last["returned"] = str(answer["not_plain"])[:_MAX_SHOWN]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
      self.last["returned"] = "something that cannot be read"
    raise raised or _NotPlainError


class _NotPlainError(AssertionError):
  """Means that the program returned a value that no test can compare."""


def examine(job: dict[str, Any], reports: int, channel: int) -> None:
  """Runs the tests of a job and reports their results; does not return.

  Args:
    job: `tests`, the source; `prelude`, source that runs before it; `names`,
      functions of the program besides all names that the tests use but do not
      define.
    reports: Descriptor for the report.
    channel: Descriptor of the channel to the program.
  """
  log = _Log(_Program(channel))
  try:
    log.run(job)
  except BaseException as error:
    log.broken = f"{type(error).__name__}: {error}"[:_MAX_SHOWN]
  finally:
    programs._write(reports, json.dumps(log.report()).encode())
    os._exit(0)


class _Log:
  """Runs tests and counts the assertions that hold."""

  def __init__(self, program: _Program):
    self.program = program
    self.num_passed = self.num_failed = 0
    self.failures: list[dict[str, Any]] = []
    self.stopped: dict[str, Any] | None = None
    self.broken: str | None = None

  def run(self, job: dict[str, Any]) -> None:
    tree = ast.parse(job["tests"], _FILE)
    namespace: dict[str, Any] = {"__name__": "__main__", "_log": self}
    if job["prelude"]:
      exec(compile(job["prelude"], "prelude.py", "exec"), namespace)
    for name in (*_undefined(tree, namespace), *job["names"]):
      # `Solution.f` is a method, for which tests have a name without a point.
      namespace[name.replace(".", "_")] = self.program.function(name)
    # After `_undefined`, which must see the names of the tests alone.
    tree = ast.fix_missing_locations(_Watched().visit(tree))
    sys.setrecursionlimit(10_000)
    sys.set_int_max_str_digits(0)
    try:
      exec(compile(tree, _FILE, "exec"), namespace)
    except StoppedError:
      pass
    except GoneError:
      self.stopped = {**(self.program.last or {}), "is_gone": True}
    # A package that the tests need is missing: no fault of the program.
    except ImportError:
      raise
    except Exception as error:
      last = self.program.last or {}
      if "raised" in last or isinstance(error, _NotPlainError):
        self.stopped = last
      elif self.program.num_calls:
        # The test's own code has worked so far, so it fails because of a value
        # that the program returned.
        self.failed(_line_of(error, job["tests"]), error)
      else:
        raise

  def for_effect(self, function: Any) -> Any:
    """Returns the variant of a function whose value the test does not use."""
    return getattr(function, "changing", function)

  def passed(self) -> None:
    self.num_passed += 1
    # A later failure must not be blamed on this call.
    self.program.last = None

  def failed(self, statement: str, error: BaseException) -> None:
    """Counts an assertion that does not hold or could not be evaluated."""
    last = self.program.last or {}
    self.program.last = None
    if "raised" in last and not isinstance(error, AssertionError):
      self.num_failed += 1
      self.stopped = {"statement": statement, **last}
      raise StoppedError
    self.num_failed += 1
    if len(self.failures) < _MAX_FAILURES:
      said = "" if isinstance(error, AssertionError) else repr(error)
      self.failures.append(
        {"statement": statement, "error": said[:_MAX_SHOWN], **last}
      )

  def report(self) -> dict[str, Any]:
    return {
      "num_passed": self.num_passed,
      "num_failed": self.num_failed,
      "failures": self.failures,
      "stopped": self.stopped,
      "broken": self.broken,
    }


class _Watched(ast.NodeTransformer):
  """Rewrites tests so that they count assertions and go on after failures."""

  def visit_Assert(self, node: ast.Assert) -> ast.AST:
    text = ast.unparse(ast.Assert(test=node.test, msg=None))
    watched = ast.parse(
      "try:\n"
      "  pass\n"
      "except Exception as _error:\n"
      f"  _log.failed({text[:_MAX_SHOWN]!r}, _error)\n"
      "else:\n"
      "  _log.passed()\n"
    ).body[0]
    assert isinstance(watched, ast.Try)
    watched.body = [node]
    return ast.copy_location(watched, node)

  def visit_Expr(self, node: ast.Expr) -> ast.AST:
    """Marks a call whose value is not used, such as one that sorts a list.

    Only then are the program's changes to its arguments copied back: otherwise
    it could change the value that its answer is compared with.
    """
    called = node.value
    if isinstance(called, ast.Call) and isinstance(called.func, ast.Name):
      log = ast.Name("_log", ast.Load())
      for_effect = ast.Attribute(log, "for_effect", ast.Load())
      called.func = ast.Call(for_effect, [called.func], [])
    return node


def _undefined(tree: ast.AST, namespace: dict[str, Any]) -> set[str]:
  """Returns the names that the tests use but do not define."""
  used, bound = set(), set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Name):
      (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
      bound.add(node.name)
    elif isinstance(node, ast.arg):
      bound.add(node.arg)
    elif isinstance(node, ast.alias):
      bound.add((node.asname or node.name).partition(".")[0])
    elif isinstance(node, ast.ExceptHandler) and node.name:
      bound.add(node.name)
  return {
    name
    for name in used - bound
    if not hasattr(builtins, name) and name not in namespace
  }


def _exception(raised: dict[str, Any]) -> BaseException:
  """Rebuilds the program's exception if it is a suitable built-in one."""
  kind = getattr(builtins, str(raised["type"]), None)
  text = str(raised["message"])
  if (
    not isinstance(kind, type)
    or not issubclass(kind, Exception)
    # UnicodeError needs more arguments than a text, and an AssertionError would
    # look like the test's own.
    or issubclass(kind, UnicodeError | AssertionError)
    # These would end a loop of the test as if all had been well.
    or issubclass(kind, StopIteration | StopAsyncIteration)
  ):
    return RuntimeError(f"{raised['type']}: {text}")
  return kind(text)


def _change(given: tuple[Any, ...], changed: list[Any]) -> None:
  """Copies the program's changes back into mutable arguments."""
  for old, new in zip(given, map(values.decode, changed), strict=True):
    if isinstance(old, list | bytearray):
      old[:] = new
    elif isinstance(old, dict | set):
      old.clear()
      old.update(new)


def _line_of(error: BaseException, source: str) -> str:
  """Returns the line of the tests at which it was raised."""
  lines = [
    number
    for frame, number in traceback.walk_tb(error.__traceback__)
    if frame.f_code.co_filename == _FILE
  ]
  return source.splitlines()[lines[-1] - 1].strip()[:_MAX_SHOWN]


def _call_text(name: str, args, kwargs) -> str:
  shown = [_shown(x) for x in args]
  shown += [f"{k}={_shown(v)}" for k, v in kwargs.items()]
  return f"{name}({', '.join(shown)})"[:_MAX_SHOWN]


def _shown(value: Any) -> str:
  if isinstance(value, Iterator):
    return "an iterator"
  try:
    text = repr(value)
  except ValueError:  # An integer has too many digits, perhaps inside a list.
    return f"a value of type {type(value).__name__}, too large to show"
  return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
