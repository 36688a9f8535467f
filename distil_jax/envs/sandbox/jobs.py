"""What is asked of a sandbox, and what it answers."""

import dataclasses
import enum
from typing import Any, Protocol, Self


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one program may take.

  Attributes:
    seconds: of CPU, all its threads together.
    wall_seconds: of the clock; a loaded machine needs more than the CPU's.
      None: three times as many and two.
    memory_bytes: all its processes together.
    output_bytes: to each of its outputs.
    file_bytes: all that it writes to files.
    num_processes: 1: it starts none, only threads.
  """

  seconds: float = 10.0
  wall_seconds: float | None = None
  memory_bytes: int = 1 << 30
  output_bytes: int = 1 << 20
  file_bytes: int = 64 << 20
  num_processes: int = 1

  def __post_init__(self) -> None:
    for name, value in dataclasses.asdict(self).items():
      if value is not None and not value > 0:
        raise ValueError(f"{name}={value} must be above 0")
      if not name.endswith("seconds") and not isinstance(value, int):
        raise ValueError(f"{name}={value} must be a whole number")

  @property
  def deadline(self) -> float:
    """Seconds of the clock until it is killed."""
    if self.wall_seconds is not None:
      return self.wall_seconds
    return 3 * self.seconds + 2


@dataclasses.dataclass(frozen=True)
class Call:
  """A function of the program, to be called once.

  Attributes:
    name: of the function; `A.f` is a method of a new `A()`.
    args: plain values.
  """

  name: str
  args: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tests:
  """Assertions about what a program's functions return.

  They are evaluated in a process that the program cannot reach. Only plain
  values go there and back, and copies: in-place changes are seen after a call
  whose value the test does not use, as in `sort(x)`, and after no other, so
  that a program cannot change what its answer is compared with.

  Attributes:
    source: Python; what it uses and nobody defines is taken from the program.
    prelude: Python that runs before, for what the tests use themselves.
    names: taken from the program, whatever the prelude defines.
  """

  source: str
  prelude: str = ""
  names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Job:
  """A program, and what to do with it.

  Attributes:
    program: Python source.
    stdin: what it reads; where it is run as a script.
    call: a function to call, in place of running a script.
    tests: what to ask of it, in place of running a script.
    limits: of the program.
  """

  program: str
  stdin: str = ""
  call: Call | None = None
  tests: Tests | None = None
  limits: Limits = Limits()

  def __post_init__(self) -> None:
    if self.call is not None and self.tests is not None:
      raise ValueError("a job has a call or tests, not both")


class End(enum.StrEnum):
  """How a program ended."""

  EXITED = "exited"
  RAISED = "raised"
  TIMEOUT = "timeout"
  MEMORY = "memory"
  OUTPUT = "output"  # it wrote more than it may
  PROCESSES = "processes"  # there were more than it may have
  KILLED = "killed"  # by a signal, such as that of a segmentation fault
  CRASHED = "crashed"  # the sandbox itself; says nothing of the program


@dataclasses.dataclass(frozen=True)
class Fault:
  """An exception that a program did not catch.

  Attributes:
    type: its name.
    message: what it says.
    frames: line, function and source of each of the program's own frames, the
      outermost first.
    num_skipped: frames left out in the middle.
  """

  type: str
  message: str
  frames: tuple[tuple[int, str, str], ...] = ()
  num_skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Check:
  """An assertion that did not hold.

  Attributes:
    statement: the assertion.
    call: the last call that it made; empty: none.
    returned: what came of that.
    error: what went wrong with the assertion itself; empty: nothing.
  """

  statement: str
  call: str = ""
  returned: str = ""
  error: str = ""


@dataclasses.dataclass(frozen=True)
class Checks:
  """How tests went.

  Attributes:
    num_passed, num_failed: assertions.
    failures: the first few.
    stopped_at: the call at which no more could be asked; empty: none.
    broken: what is wrong with the tests themselves; empty: nothing.
  """

  num_passed: int
  num_failed: int
  failures: tuple[Check, ...] = ()
  stopped_at: str = ""
  broken: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a job.

  Attributes:
    end: how the program ended.
    stdout, stderr: what it wrote.
    fault: the exception that ended it, or the call.
    exit_code: None: it was killed.
    signal: the number of what killed it.
    value: what the function returned, encoded as in `inside.values`; None:
      nothing, or nothing plain.
    not_plain: what it returned instead, in words.
    checks: how the tests went; None: there were none, or they were not run.
    seconds: of CPU.
  """

  end: End
  stdout: str = ""
  stderr: str = ""
  fault: Fault | None = None
  exit_code: int | None = None
  signal: int | None = None
  value: Any = None
  not_plain: str = ""
  checks: Checks | None = None
  seconds: float = 0.0


class Sandbox(Protocol):
  """Where programs run; any number of threads may ask at once."""

  def run(self, job: Job) -> Outcome:
    """Always has an outcome, and in bounded time."""
    ...

  def close(self) -> None:
    """Ends its processes; the next job starts others."""
    ...

  def __enter__(self) -> Self: ...

  def __exit__(self, *_: object) -> None: ...


class SandboxError(RuntimeError):
  """There is no sandbox to be had; says what to do."""


def crashed(why: str) -> Outcome:
  """The outcome of a job that the sandbox could not do."""
  return Outcome(End.CRASHED, stderr=why)
