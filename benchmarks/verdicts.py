"""Measures verdicts on programs per second, against starting Python each time.

  python -m benchmarks.verdicts

Each row judges trivial programs in `--workers` threads, and rows are timed in
turn. `ours` is a whole verdict: reading the completion, running the program in
an isolated process, comparing, and feedback. The other rows only start a
process and read its output, the least cost of starting one for each program:

bubblewrap  `bwrap` and Python for each program, as in a sandbox without
            preforked processes.
python      Python for each program, without isolation.
"""

import argparse
import concurrent.futures
import functools
import subprocess
import sys
from collections.abc import Callable

from benchmarks import machine
from distil_jax.config.environments import CodeConfig
from distil_jax.envs import sandbox
from distil_jax.envs.code import Code
from distil_jax.envs.program_tests.prompts import fenced
from distil_jax.envs.sandbox import isolation
from distil_jax.types import Problem, Status

_FUNCTION = {"prompt": "Double.", "test_list": ["assert double(4) == 8"]}
_SCRIPT = {"prompt": "Double.", "tests": [{"input": "4", "output": "8"}]}
_CALL = _SCRIPT | {"fn_name": "double"}
_DEFINES = "def double(x):\n  return 2 * x\n"
_READS = "print(2 * int(input()))\n"
# The row, what it is judged by, and the program.
_ROWS = {
  "ours, reading and writing": (_SCRIPT, _READS),
  "ours, a call": (_CALL, _DEFINES),
  "ours, an assertion": (_FUNCTION, _DEFINES),
}


def main() -> None:
  arguments = _arguments()
  count, workers = arguments.count, arguments.workers
  with (
    sandbox.make(num_processes=workers) as programs,
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
  ):
    code = Code(CodeConfig(), programs)
    functions: dict[str, Callable[[], object]] = {}
    for name, (row, program) in _ROWS.items():
      judge = functools.partial(_judge, code, code.problem(row), program)
      functions[name] = functools.partial(_all, pool, judge, count)
    for name, start in (
      ("bubblewrap", _bubblewrap()),
      ("python", [sys.executable, "-I", "-S"]),
    ):
      run = functools.partial(_start, start)
      functions[name] = functools.partial(_all, pool, run, count)
    found = machine.seconds(functions, rounds=arguments.rounds)
  print(machine.description())
  print(
    f"{count} programs, {workers} threads, medians of {arguments.rounds} "
    "rounds in turn\n"
  )
  print("| | verdicts a second | of ours, an assertion |")
  print("|---|---|---|")
  base = found["ours, an assertion"]
  for name, seconds in found.items():
    print(f"| {name} | {count / seconds:.0f} | {base / seconds:.2f} |")


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--count", type=int, default=200)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--workers", type=int, default=2)
  return parser.parse_args()


def _all(pool, run: Callable[[], None], count: int) -> None:
  for future in [pool.submit(run) for _ in range(count)]:
    future.result()


def _judge(code: Code, problem: Problem, program: str) -> None:
  verdict = code.judge(problem, fenced(program))
  assert verdict.status is Status.CORRECT, verdict


def _start(command: list[str]) -> None:
  done = subprocess.run(
    [*command, "-c", _READS],
    input="4",
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == "8\n"


def _bubblewrap() -> list[str]:
  """Runs each program in a new sandbox with the same view of this machine."""
  how = isolation.bubblewrapped()
  return [*how.prefix, how.python, "-I", "-S"]


if __name__ == "__main__":
  main()
