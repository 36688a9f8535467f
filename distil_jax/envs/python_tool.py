"""Python between a student's turns: the last block of the turn is run.

Nothing is kept between two calls: the blocks of the turns before run again,
first, without their output, and so their variables are there.
"""

import dataclasses
import re
from collections.abc import Sequence

from distil_jax.envs import completion_text as envs_text
from distil_jax.envs import sandbox
from distil_jax.types import Problem

# Nothing is tried twice: a block that is never closed is soon read.
_FENCE = re.compile(
  r"^[ \t]*+```[ \t]*+(python3?|py)?[ \t]*+$", re.MULTILINE | re.IGNORECASE
)
# Lines of an error that are shown: the last of them say what it is.
_NUM_ERROR_LINES = 8
_SILENT = "(nothing was printed)"
# Blocks are data here, so that none can end another by a quote or an error.
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
    seconds: of CPU, for the block and those before it.
    memory_gib: of the program, GiB.
    max_characters: that are shown; what is left out leaves a sign.
    box: where programs run; None: the safest that this machine has.
  """

  seconds: float = 5.0
  memory_gib: float = 1.0
  max_characters: int = 2000
  box: sandbox.Sandbox | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def __post_init__(self) -> None:
    if self.max_characters < 100:
      raise ValueError(
        f"max_characters={self.max_characters} must be at least 100"
      )
    self._limits()  # refuses the others
    if self.box is None:
      object.__setattr__(self, "box", sandbox.make())

  def __call__(
    self, problem: Problem, turns: Sequence[str], outputs: Sequence[str]
  ) -> str | None:
    """What the block prints, and the last lines of its error.

    Raises:
      RuntimeError: the sandbox has failed.
    """
    del problem, outputs
    newest = last_block(turns[-1])
    if newest is None:
      return None
    blocks = (last_block(turn) for turn in turns[:-1])
    earlier = tuple(block for block in blocks if block is not None)
    program = _PROGRAM.format(earlier=earlier, newest=newest)
    assert self.box is not None
    outcome = self.box.run(sandbox.Job(program, limits=self._limits()))
    if outcome.end is sandbox.End.CRASHED:
      raise RuntimeError(f"the sandbox has failed: {outcome.stderr}")
    shown = "\n".join(
      part.rstrip("\n")
      for part in (outcome.stdout, self._error(outcome))
      if part.strip()
    )
    return envs_text.shortened_inside(shown or _SILENT, self.max_characters)

  def _limits(self) -> sandbox.Limits:
    return sandbox.Limits(
      seconds=self.seconds,
      wall_seconds=2 * self.seconds + 2,
      memory_bytes=round(self.memory_gib * 2**30),
    )

  def _error(self, outcome: sandbox.Outcome) -> str:
    """In words; empty where there is none."""
    match outcome.end:
      case sandbox.End.TIMEOUT:
        return f"(stopped after {self.seconds:g} s)"
      case sandbox.End.MEMORY:
        return f"(stopped: more than {self.memory_gib:g} GiB of memory)"
      case sandbox.End.OUTPUT:
        return "(stopped: too much was printed)"
      case sandbox.End.PROCESSES:
        return "(stopped: too many processes were started)"
      case sandbox.End.KILLED:
        return f"(killed by signal {outcome.signal})"
      case _:
        lines = outcome.stderr.rstrip("\n").split("\n")
        return "\n".join(lines[-_NUM_ERROR_LINES:])


def last_block(text: str) -> str | None:
  """The source in the last closed block of Python; None: there is none."""
  found = start = None
  for fence in _FENCE.finditer(text):
    if start is None:
      start = fence if fence[1] else None
    elif not fence[1]:
      found, start = text[start.end() + 1 : fence.start()], None
  return found
