"""Reads inputs one by one, and says which were not dealt with."""

import contextlib
import dataclasses
import pathlib
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator

from benchmarks.fuzz.readers import READERS, Reader

# A reader that takes longer hangs.
_SECONDS = 10
# What a reader of data has no reason to do.
_FORBIDDEN = (
  "os.system",
  "os.exec",
  "os.posix_spawn",
  "subprocess.Popen",
  "socket.connect",
  "pickle.find_class",
)
_seen: list[str] = []
_is_watching = False


@dataclasses.dataclass
class Outcome:
  """Counts what became of the inputs of a reader.

  Attributes:
    num_read: those that were read.
    num_refused: those with a clear error.
    faults: number, what went wrong, and input of the others.
  """

  num_read: int = 0
  num_refused: int = 0
  faults: list[tuple[int, str, bytes]] = dataclasses.field(default_factory=list)


class HangError(BaseException):
  """No reader catches it by accident."""


def run(
  name: str,
  folder: pathlib.Path,
  *,
  num: int,
  seed: int = 0,
  first: int = 0,
  report: Callable[[int], None] = lambda done: None,
) -> Outcome:
  """Gives a reader inputs, and looks at how it ends.

  Args:
    name: of the reader.
    folder: where the inputs lie, one after the other.
    num: number of inputs.
    seed: of all inputs; each depends on it and on its number alone.
    first: number of the first input.
    report: told how many are done.
  """
  _watch()
  reader = READERS[name]
  folder.mkdir(parents=True, exist_ok=True)
  reader.prepare(folder)
  outcome = Outcome()
  for number in range(first, first + num):
    content = reader.make(random.Random(f"{name} {seed} {number}"))
    fault = _fault(reader, folder / reader.name, content, outcome)
    if fault is not None:
      outcome.faults.append((number, fault, content))
    report(number - first + 1)
  return outcome


def _fault(
  reader: Reader, path: pathlib.Path, content: bytes, outcome: Outcome
) -> str | None:
  """Returns what went wrong with an input, or None."""
  global _is_watching
  # A new file: parts of the old one may be mapped into memory.
  path.unlink(missing_ok=True)
  path.write_bytes(content)
  _seen.clear()
  try:
    with _limited(), warnings.catch_warnings():
      warnings.simplefilter("ignore")
      _is_watching = True
      try:
        reader.read(path)
      finally:
        _is_watching = False
    outcome.num_read += 1
  except HangError:
    return f"takes more than {_SECONDS} s"
  except reader.errors as error:
    outcome.num_refused += 1
    text = str(error)
    if not text.strip() or "Traceback" in text:
      return f"an unclear message: {text!r:.200}"
    if type(error) is UnicodeDecodeError:
      return f"an error that names no file: {text:.200}"
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt):
      raise
    return f"{type(error).__name__}: {error!s:.200}"
  return f"runs code: {_seen[0]}" if _seen else None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
  def end(*_):
    raise HangError

  before = signal.signal(signal.SIGALRM, end)
  signal.setitimer(signal.ITIMER_REAL, _SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _watch() -> None:
  """Notes forbidden events while a reader runs; cannot be undone."""
  if _watch in _hooked:
    return
  _hooked.append(_watch)

  def hook(event: str, _) -> None:
    if _is_watching and event in _FORBIDDEN:
      _seen.append(event)

  sys.addaudithook(hook)


_hooked: list[Callable[[], None]] = []
