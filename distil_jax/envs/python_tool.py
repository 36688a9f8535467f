"""Runs the last Python block of a student's turn.

No process is kept between two calls: the blocks of the earlier turns run again
first, without their output, so that their variables are there.
"""

import dataclasses
from collections.abc import Sequence

from distil_jax.config.tools import PythonToolConfig
from distil_jax.envs import code_blocks
from distil_jax.envs import completion_text as envs_text
from distil_jax.envs.sandbox import End, Job, Limits, Outcome, Sandbox
from distil_jax.types import Problem

# Lines of an error that are shown: its last lines say what went wrong.
_NUM_ERROR_LINES = 8
_SILENT = "(nothing was printed)"
# Blocks are string literals here, so that no quote or syntax error in one can
# affect another.
_PROGRAM = """\
import contextlib, linecache, os, sys, traceback

def run(source, scope):
  name = "<block>"
  lines = source.splitlines(keepends=True)
  linecache.cache[name] = (len(source), None, lines, name)
  exec(compile(source, name, "exec"), scope)

@contextlib.contextmanager
def silence():
  # Below `sys.stdout`, which is for the blocks what it was to them.
  streams = sys.stdout, sys.stderr
  places = os.dup(1), os.dup(2)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  os.dup2(nowhere, 2)
  yield
  sys.stdout, sys.stderr = streams
  for number, (stream, place) in enumerate(zip(streams, places), 1):
    with contextlib.suppress(ValueError):  # it is closed
      stream.flush()
    os.dup2(place, number)
    os.close(place)

def main(*earlier, newest):
  scope = {{"__name__": "__main__"}}
  with silence():
    for source in earlier:
      try:
        run(source, scope)
      except BaseException:
        pass  # as it did then
  try:
    run(newest, scope)
  except SystemExit:
    raise
  except BaseException as error:
    # From the block itself on.
    error.__traceback__ = error.__traceback__.tb_next.tb_next
    traceback.print_exception(error)
    sys.exit(1)

main(*{earlier!r}, newest={newest!r})
"""


@dataclasses.dataclass(frozen=True)
class PythonTool:
  """Runs the last fenced block of Python of a turn, if there is one.

  Attributes:
    config: Limits of the program and of its output.
    sandbox: Runs the programs.
  """

  config: PythonToolConfig
  sandbox: Sandbox = dataclasses.field(repr=False, compare=False)

  def __call__(
    self, problem: Problem, turns: Sequence[str], outputs: Sequence[str]
  ) -> str | None:
    """Returns what the block prints, and the last lines of its error.

    Raises:
      RuntimeError: The sandbox has failed.
    """
    del problem, outputs
    newest = last_block(turns[-1])
    if newest is None:
      return None
    blocks = (last_block(turn) for turn in turns[:-1])
    earlier = tuple(block for block in blocks if block is not None)
    program = _PROGRAM.format(earlier=earlier, newest=newest)
    outcome = self.sandbox.run(Job(program, limits=self._limits()))
    if outcome.end is End.CRASHED:
      raise RuntimeError(f"the sandbox has failed: {outcome.stderr}")
    shown = "\n".join(
      part.rstrip("\n")
      for part in (outcome.stdout, self._error(outcome))
      if part.strip()
    )
    length = self.config.max_characters
    return envs_text.shortened_inside(shown or _SILENT, length)

  def _limits(self) -> Limits:
    return Limits(
      seconds=self.config.seconds,
      # A program that waits uses no CPU time, so it has a limit of its own.
      wall_seconds=2 * self.config.seconds + 2,
      memory_bytes=round(self.config.memory_gib * 2**30),
    )

  def _error(self, outcome: Outcome) -> str:
    """Returns the error in words, or an empty text."""
    match outcome.end:
      case End.TIMEOUT:
        return f"(stopped after {self.config.seconds:g} s)"
      case End.MEMORY:
        return f"(stopped: more than {self.config.memory_gib:g} GiB of memory)"
      case End.OUTPUT:
        return "(stopped: too much was printed)"
      case End.PROCESSES:
        return "(stopped: too many processes were started)"
      case End.KILLED:
        return f"(killed by signal {outcome.signal})"
      case _:
        lines = outcome.stderr.rstrip("\n").split("\n")
        return "\n".join(lines[-_NUM_ERROR_LINES:])


def last_block(text: str) -> str | None:
  """Returns the source of the last closed block of Python, or None.

  A block without a language is what a program printed, as often as not.
  """
  return code_blocks.last_python(text, takes_unlabelled=False)[0]
