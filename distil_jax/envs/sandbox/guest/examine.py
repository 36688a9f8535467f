"""Runs tests that call a program, which lives in another process.

The tests and all that they expect are here, the program is not: it is asked
for values over a channel, so that nothing it does can reach a comparison.
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


class GoneError(BaseException):
  """The program has ended; nothing more can be asked of it."""


class StoppedError(BaseException):
  """The program raised where no test expects it to."""


class UnaskableError(BaseException):
  """A test gives the program what cannot be sent there."""


class _Program:
  """The program, as functions that are called elsewhere."""

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
  """What came back is nothing that a test could compare."""


def examine(job: dict[str, Any], reports: int, channel: int) -> None:
  """Runs the tests of a job, and reports how they went; does not return.

  Args:
    job: `tests`: source; `prelude`: source before it, of what the tests may
      use; `names`: what is asked of the program, beside all that the tests use
      and nobody defines.
    reports: descriptor for the report.
    channel: to the program.
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
  """Tests under way."""

  def __init__(self, program: _Program):
    self.program = program
    self.num_passed = self.num_failed = 0
    self.failures: list[dict[str, Any]] = []
    self.stopped: dict[str, Any] | None = None
    self.broken: str | None = None

  def run(self, job: dict[str, Any]) -> None:
    tree = ast.parse(job["tests"], _FILE)
    namespace: dict[str, Any] = {"__name__": "tests", "_log": self}
    if job["prelude"]:
      exec(compile(job["prelude"], "prelude.py", "exec"), namespace)
    for name in {*job["names"], *_asked(tree, namespace)}:
      namespace[name] = self.program.function(name)
    tree = ast.fix_missing_locations(_Watched().visit(tree))
    sys.setrecursionlimit(10_000)
    try:
      exec(compile(tree, _FILE, "exec"), namespace)
    except StoppedError:
      pass
    except GoneError:
      self.stopped = {**(self.program.last or {}), "is_gone": True}
    except ImportError:
      raise
    except Exception as error:
      last = self.program.last or {}
      if "raised" in last or isinstance(error, _NotPlainError):
        self.stopped = last
      elif self.program.num_calls:
        # A test that has worked so far fails by what it was given.
        self.failed(_line_of(error, job["tests"]), error)
      else:
        raise

  def for_effect(self, function: Any) -> Any:
    """The function that is called, and whose value nobody uses."""
    return getattr(function, "changing", function)

  def passed(self) -> None:
    self.num_passed += 1
    self.program.last = None

  def failed(self, statement: str, error: BaseException) -> None:
    """An assertion that does not hold, or could not be evaluated."""
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
  """Goes on after an assertion that does not hold, and notes it."""

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
    """A call for its effect alone, such as that to sort a list.

    Elsewhere the program gets copies, so that it cannot change what its answer
    is compared with.
    """
    called = node.value
    if isinstance(called, ast.Call) and isinstance(called.func, ast.Name):
      log = ast.Name("_log", ast.Load())
      asked = ast.Attribute(log, "for_effect", ast.Load())
      called.func = ast.Call(asked, [called.func], [])
    return node


def _asked(tree: ast.AST, namespace: dict[str, Any]) -> set[str]:
  """Names that the tests use and nobody defines."""
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
  """What the program raised, as far as Python itself knows it."""
  kind = getattr(builtins, str(raised["type"]), None)
  text = str(raised["message"])
  if (
    not isinstance(kind, type)
    or not issubclass(kind, Exception)
    # Some need more than a text, the others would look like the test's own.
    or issubclass(kind, UnicodeError | AssertionError)
    # Would end a test's loop, as if all had been well.
    or issubclass(kind, StopIteration | StopAsyncIteration)
  ):
    return RuntimeError(f"{raised['type']}: {text}")
  return kind(text)


def _change(given: tuple[Any, ...], changed: list[Any]) -> None:
  """Lists and the like as the program has left them."""
  for old, new in zip(given, map(values.decode, changed), strict=True):
    if isinstance(old, list | bytearray):
      old[:] = new
    elif isinstance(old, dict | set):
      old.clear()
      old.update(new)


def _line_of(error: BaseException, source: str) -> str:
  """Where in the tests it was raised."""
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
  except ValueError:  # an integer of too many digits, perhaps inside
    return f"a value of type {type(value).__name__}, too large to show"
  return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
