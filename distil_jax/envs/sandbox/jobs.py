"""Defines the jobs of a sandbox and their outcomes."""

import dataclasses
import enum
from typing import Any, Protocol, Self


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits the resources of one program.

  Attributes:
    seconds: CPU time of all its threads together.
    wall_seconds: Wall-clock time, which must exceed the CPU time on a loaded
      machine. None means `3 * seconds + 2`.
    memory_bytes: Memory of all its processes together.
    output_bytes: Bytes that it may write to each of its outputs.
    file_bytes: Bytes of all its files together.
    num_processes: Largest number of processes; with 1 it can start threads
      only.
  """

  seconds: float = 10.0
  wall_seconds: float | None = None
  memory_bytes: int = 1 << 30
  output_bytes: int = 1 << 20
  file_bytes: int = 64 << 20
  num_processes: int = 1

  def __post_init__(self) -> None:
    for name, value in dataclasses.asdict(self).items():
      # Written so that NaN is refused too.
      if value is not None and not value > 0:
        raise ValueError(f"{name}={value} must be above 0")
      if not name.endswith("seconds") and not isinstance(value, int):
        raise ValueError(f"{name}={value} must be a whole number")

  @property
  def deadline(self) -> float:
    """Returns the wall-clock seconds after which the program is killed."""
    if self.wall_seconds is not None:
      return self.wall_seconds
    return 3 * self.seconds + 2


@dataclasses.dataclass(frozen=True)
class Call:
  """A call of one of the program's functions.

  Attributes:
    name: Name of the function; `A.f` is a method of a new `A()`.
    args: Its arguments, plain values as in `guest.values`.
    changes_argument: If True, a function that returns None stands for its first
      argument as it is after the call.
  """

  name: str
  args: tuple[Any, ...] = ()
  changes_argument: bool = False


@dataclasses.dataclass(frozen=True)
class Tests:
  """Assertions about the values that a program's functions return.

  They are evaluated in a process that the program cannot reach. Only copies of
  plain values are exchanged. A program's changes to its arguments are copied
  back only after a call whose value the test does not use, as in `sort(x)`:
  otherwise a program could change the value that its answer is compared with.

  Attributes:
    source: Python; names that it uses but does not define are functions of the
      program.
    prelude: Python that runs before the source and defines what it needs.
    names: Functions of the program, even if the prelude defines them too.
  """

  source: str
  prelude: str = ""
  names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Job:
  """A program and how to run it: as a script, a function, or under tests.

  Attributes:
    program: Python source.
    stdin: Standard input, if it runs as a script.
    call: Function to call instead of running a script.
    tests: Tests to run instead of running a script.
    limits: Limits of the program.
  """

  program: str
  stdin: str = ""
  call: Call | None = None
  tests: Tests | None = None
  limits: Limits = Limits()

  def __post_init__(self) -> None:
    if self.call is not None and self.tests is not None:
      raise ValueError("a job has a call or tests, not both; drop one")


class End(enum.StrEnum):
  """Names the ways in which a program ends."""

  EXITED = "exited"
  RAISED = "raised"
  TIMEOUT = "timeout"
  MEMORY = "memory"
  OUTPUT = "output"  # It wrote more than its limit.
  PROCESSES = "processes"  # It started more processes than its limit.
  KILLED = "killed"  # A signal killed it, such as a segmentation fault.
  CRASHED = "crashed"  # The sandbox failed; says nothing about the program.


@dataclasses.dataclass(frozen=True)
class Fault:
  """An exception that a program did not catch.

  Attributes:
    type: Name of its class.
    message: Its text.
    frames: Line number, function and source line of each of the program's own
      frames, the outermost first.
    num_skipped: Number of frames that are left out in the middle.
  """

  type: str
  message: str
  frames: tuple[tuple[int, str, str], ...] = ()
  num_skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Check:
  """An assertion that did not hold.

  Attributes:
    statement: The assertion.
    call: The last call that it made; empty if there was none.
    returned: The value that this call returned, as text.
    error: The exception that the assertion itself raised; empty if none.
  """

  statement: str
  call: str = ""
  returned: str = ""
  error: str = ""


@dataclasses.dataclass(frozen=True)
class Checks:
  """Results of tests.

  Attributes:
    num_passed: Number of assertions that held.
    num_failed: Number of assertions that did not hold.
    failures: The first few of these.
    stopped_at: The call at which the tests ended early; empty if they did not.
    broken: The error in the tests themselves; empty if there is none.
  """

  num_passed: int
  num_failed: int
  failures: tuple[Check, ...] = ()
  stopped_at: str = ""
  broken: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Outcome of a job.

  Attributes:
    end: How the program ended.
    stdout: Text that it wrote to its standard output.
    stderr: Text that it wrote to its standard error.
    fault: The exception that ended the program or the call.
    exit_code: Its exit status; None if it was killed.
    signal: Number of the signal that killed it.
    value: The function's value, encoded as in `guest.values`; None if there is
      none or it is not plain.
    not_plain: Describes a value that is not plain.
    checks: Results of the tests; None if there were none or they did not run.
    seconds: CPU time that it used.
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
  """Runs jobs; any number of threads may use it at once."""

  def run(self, job: Job) -> Outcome:
    """Runs a job and returns its outcome in bounded time."""
    ...

  def close(self) -> None:
    """Ends its processes; the next job starts new ones."""
    ...

  def __enter__(self) -> Self: ...

  def __exit__(self, *_: object) -> None: ...


class SandboxError(RuntimeError):
  """Means that no sandbox is available; says what to do."""


def crashed(why: str) -> Outcome:
  """Returns the outcome of a job that the sandbox failed to run."""
  return Outcome(End.CRASHED, stderr=why)
