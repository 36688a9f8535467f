"""Runs tests that call a program, which lives in another process.

The tests and all that they expect are here, the program is not: it is asked
for values over a channel, so that nothing it does can reach a comparison.
"""

import ast
import builtins
import json
import os
import random
import sys
from typing import Any

from distil_jax.sandbox.inside import programs, values

_FILE = "tests.py"
_MAX_FAILURES = 2
_MAX_SHOWN = 300
_MAX_ANSWER = 8 << 20


class GoneError(BaseException):
  """The program has ended; nothing more can be asked of it."""


class StoppedError(BaseException):
  """The program raised where no test expects it to."""


class _Program:
  """The program, as functions that are called elsewhere."""

  def __init__(self, channel: int):
    self._channel = channel
    self._answers = os.fdopen(channel, "rb", closefd=False)
    self.last: dict[str, Any] | None = None

  def function(self, name: str):
    def call(*args: Any, **kwargs: Any) -> Any:
      return self._ask(name, args, kwargs)

    call.__name__ = name
    return call

  def _ask(self, name, args, kwargs) -> Any:
    self.last = {"call": _call_text(name, args, kwargs)}
    question = {
      "name": name,
      "args": [values.encode(x) for x in args],
      "kwargs": {k: values.encode(v) for k, v in kwargs.items()},
    }
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
    random.seed(0)  # the same verdict each time
    try:
      exec(compile(tree, _FILE, "exec"), namespace)
    except StoppedError:
      pass
    except GoneError:
      self.stopped = {**(self.program.last or {}), "is_gone": True}
    except Exception as error:
      last = self.program.last or {}
      if "raised" not in last and not isinstance(error, _NotPlainError):
        raise
      self.stopped = last

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
    # One needs more than a text, the other would look like the test's own.
    or issubclass(kind, UnicodeError | AssertionError)
  ):
    return RuntimeError(f"{raised['type']}: {text}")
  return kind(text)


def _call_text(name: str, args, kwargs) -> str:
  shown = [_shown(x) for x in args]
  shown += [f"{k}={_shown(v)}" for k, v in kwargs.items()]
  return f"{name}({', '.join(shown)})"[:_MAX_SHOWN]


def _shown(value: Any) -> str:
  try:
    text = repr(value)
  except ValueError:  # an integer of too many digits
    text = f"a number of {value.bit_length()} bits"
  return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
