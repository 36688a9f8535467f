"""Runs a program in this process, as a script or by calling its functions.

Nothing here is secret, and nobody trusts it: the program shares this process
and can change all of it.
"""

import atexit
import io
import json
import linecache
import os
import site
import sys
import threading
import types
from typing import Any

from distil_jax.envs.sandbox.guest import leetcode, values

FILE = "program.py"
_MAX_FRAMES = 6
_MAX_LINE = 200
_MAX_MESSAGE = 1000

Fault = dict[str, Any]


def run(job: dict[str, Any], reports: int, channel: int | None) -> None:
  """Runs a job and reports its result; does not return.

  Args:
    job: `program`, and `call` if a function is to be called.
    reports: Descriptor for the report.
    channel: Descriptor from which calls are read, see `serve`; None means that
      there are none.
  """
  _settle()
  report: dict[str, Any] = {}
  code = 0
  try:
    if channel is not None:
      serve(job["program"], channel)
    elif job.get("call"):
      report = value_of(job["program"], job["call"])
    else:
      code, report = whole(job["program"])
  finally:
    _flush()
    _write(reports, json.dumps(report).encode())
    os._exit(code)


def whole(program: str) -> tuple[int, dict[str, Any]]:
  """Runs a program as a script until all its threads have ended.

  Returns:
    Its exit status and the report.
  """
  main = types.ModuleType("__main__")
  main.__file__ = FILE
  # Pickle and dataclasses look names up in `sys.modules`, so the program needs
  # a module of its own there.
  sys.modules["__main__"] = main
  try:
    exec(_compiled(program), main.__dict__)
    code: Any = 0
  except SystemExit as error:
    code = error.code
  except BaseException as error:
    _end_threads()
    return 1, {"raised": fault(error)}
  _end_threads()
  if code is None or isinstance(code, int):
    # The kernel keeps the low byte of an exit status.
    return (code or 0) & 0xFF, {}
  print(code, file=sys.stderr)
  return 1, {}


def value_of(program: str, call: dict[str, Any]) -> dict[str, Any]:
  """Calls a function of the program and returns the report.

  Args:
    program: Source of the program.
    call: `name`, where `A.f` is a method of a new `A()`, `args`, encoded, and
      `changes_argument`.
  """
  try:
    namespace = _loaded(program, leetcode.builtin_names())
    function = _function(namespace, call["name"])
    args = [values.decode(x) for x in call["args"]]
    changes = call.get("changes_argument", False)
    return _encoded(
      leetcode.call(function, args, namespace, changes_argument=changes)
    )
  except BaseException as error:
    return {"raised": fault(error)}


def serve(program: str, channel: int) -> None:
  """Answers calls, one a line, until the channel is closed."""
  lines = os.fdopen(channel, "rb", closefd=False)
  try:
    namespace = _loaded(program)
  except BaseException as error:
    broken = {"raised": fault(error)}
    # The tests get an answer to each call, or they would wait for one until
    # their deadline.
    for _ in lines:
      _write(channel, json.dumps(broken).encode() + b"\n")
    return
  for line in lines:
    call = json.loads(line)
    try:
      function = _function(namespace, call["name"])
      args = [values.decode(x) for x in call["args"]]
      kwargs = {k: values.decode(v) for k, v in call["kwargs"].items()}
      answer = _encoded(function(*args, **kwargs))
      if call["is_for_effect"]:
        given = (*args, *kwargs.values())
        answer["changed"] = [values.encode(x) for x in given]
    except BaseException as error:
      answer = {"raised": fault(error)}
    _write(channel, json.dumps(answer).encode() + b"\n")


def fault(error: BaseException) -> Fault:
  """Describes an exception with the frames of the program alone."""
  frames = []
  trace = error.__traceback__
  while trace is not None:
    code = trace.tb_frame.f_code
    if code.co_filename == FILE:
      text = linecache.getline(FILE, trace.tb_lineno).strip()
      frames.append([trace.tb_lineno, code.co_name, text[:_MAX_LINE]])
    trace = trace.tb_next
  skipped = 0
  if len(frames) > _MAX_FRAMES:
    skipped = len(frames) - _MAX_FRAMES
    half = _MAX_FRAMES // 2
    # A deep recursion shows how it begins and where it ends.
    frames = frames[:half] + frames[-half:]
  if isinstance(error, SyntaxError) and error.filename == FILE:
    text = (error.text or "").strip()[:_MAX_LINE]
    frames = [[error.lineno or 0, "", text]]
  return {
    "type": type(error).__name__[:100],
    "message": _message(error),
    "frames": frames,
    "num_skipped": skipped,
  }


def _message(error: BaseException) -> str:
  try:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return str(text)[:_MAX_MESSAGE]
  except BaseException:  # The text of a program's own exception may raise.
    return ""


def _compiled(program: str) -> types.CodeType:
  program = program.removeprefix("\ufeff")  # As Python does with files.
  lines = program.splitlines(keepends=True)
  # Tracebacks read source lines here, as there is no file to read.
  linecache.cache[FILE] = (len(program), None, lines, FILE)
  # Future statements of this module must not hold for the program.
  return compile(program, FILE, "exec", dont_inherit=True)


def _loaded(
  program: str, builtin_names: dict[str, Any] | None = None
) -> dict[str, Any]:
  """Returns the names that the program defines, imported rather than run."""
  module = types.ModuleType("program")
  if builtin_names is not None:
    module.__dict__["__builtins__"] = builtin_names
  sys.modules["program"] = module
  exec(_compiled(program), module.__dict__)
  return module.__dict__


def _function(namespace: dict[str, Any], name: str) -> Any:
  first, _, method = name.partition(".")
  if first not in namespace:
    raise NameError(f"name {first!r} is not defined")
  found = namespace[first]
  return getattr(found(), method) if method else found


def _encoded(value: Any) -> dict[str, Any]:
  try:
    return {"value": values.encode(value)}
  except (values.PlainError, RecursionError) as error:
    return {"not_plain": str(error)[:_MAX_LINE]}


def _settle() -> None:
  """Gives this process the streams and arguments of a new interpreter."""
  # Bytes that are no UTF-8 must not stop a program that only copies them.
  sys.stdin = io.TextIOWrapper(
    io.BufferedReader(io.FileIO(0, closefd=False)),
    encoding="utf-8",
    errors="surrogateescape",
  )
  for number, name in ((1, "stdout"), (2, "stderr")):
    raw = io.FileIO(number, "w", closefd=False)
    stream = io.TextIOWrapper(
      io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace"
    )
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)
  sys.__stdin__ = sys.stdin
  sys.argv = [FILE]
  # A program may print a number of any length; its CPU time is limited.
  sys.set_int_max_str_digits(0)
  # `exit` and `quit` come from `site`, which this interpreter started without.
  site.setquit()


def _end_threads() -> None:
  """Waits as Python does: for all threads except daemons, then `atexit`."""
  # Unlike a `join` of each thread, this tells executors to end theirs.
  threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
  atexit._run_exitfuncs()


def _flush() -> None:
  """Flushes what Python would flush at exit, also files that are left open."""
  main = sys.modules.get("__main__")
  # Not `isinstance`, which would ask the program's objects for their class.
  left_open = [
    x
    for x in getattr(main, "__dict__", {}).values()
    if issubclass(type(x), io.IOBase)
  ]
  standard = [sys.__stdout__, sys.__stderr__, sys.stdout, sys.stderr]
  for stream in (*standard, *left_open):
    try:
      stream.flush()
    except (
      BaseException
    ):  # It is closed, or has been replaced by something else.
      continue


def _write(descriptor: int, data: bytes) -> None:
  while data:
    data = data[os.write(descriptor, data) :]
