"""Shows the progress of a run in one line on stderr."""

import collections
import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import tqdm

from distil_jax.distributed import process_group
from distil_jax.training.logging.compile_ticker import CompileTicker
from distil_jax.training.logging.compile_watch import WATCH

_STAGE_SECONDS = 2.0  # a shorter stage gets no line in a log file
_RECENT_STEPS = 50  # the time left is estimated from these

_FIELDS = (  # shown after the reward, or after the loss without a reward
  ("cost", "cost {:.3f}"),
  ("completion_length", "length {:.1f}"),
  ("time/tokens_per_second", "{:,.0f} tokens/s"),
)


class Progress:
  """A live line on a terminal, or plain lines in a log file.

  It is a context manager. Processes that show nothing make the same calls.
  """

  def __init__(
    self,
    num_steps: int | None = None,
    *,
    is_shown: bool = True,
    is_quiet: bool = False,
    stream: TextIO | None = None,
    interval: float = 10.0,
  ):
    """Prepares the line.

    Args:
      num_steps: steps of the whole run; None if there are only stages.
      is_shown: true in one process only.
      is_quiet: show warnings alone.
      stream: where to write; None means stderr.
      interval: smallest time between two plain lines, seconds.
    """
    self._num_steps = num_steps
    self._is_shown = is_shown and not is_quiet
    self._is_warning = is_shown
    self._stream = stream or sys.stderr
    self._interval = interval
    self._bar: tqdm.tqdm | None = None
    self._ticker: CompileTicker | None = None
    self._printed_at = -float("inf")
    self._steps_at: collections.deque[tuple[int, float]] = collections.deque(
      maxlen=_RECENT_STEPS
    )

  def __enter__(self) -> "Progress":
    if self._is_shown and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=self._num_steps,
        file=self._stream,
        desc="starting",
        # tqdm adapts to the stride, and a resume begins with a very long one.
        miniters=1,
        # The bar fills the rest of the line.
        bar_format="{desc}" if self._num_steps is None else "{desc}  {bar}",
        **_size(self._stream),
      )
    if self._is_shown:
      self._ticker = CompileTicker(self._line_of_compiler())
    return self

  def __exit__(self, *error: object) -> None:
    if self._ticker is not None:
      self._ticker.close()
      self._ticker = None
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def step(self, step: int, values: Mapping[str, Any]) -> None:
    """Shows a finished step.

    Args:
      step: the step, counted from 1; a resumed run begins with a later one.
      values: the step's metrics; missing ones are not shown.
    """
    if not self._is_shown:
      return
    self._steps_at.append((step, time.monotonic()))
    total = "" if self._num_steps is None else f"/{self._num_steps}"
    parts = [f"{step}{total}", *self._time_left(), *_fields(values)]
    text = "  ".join(parts)
    if self._bar is not None:
      self._bar.set_description_str(text, refresh=False)
      self._bar.update(step - self._bar.n)
    elif step == self._num_steps:
      self._print(f"step {text}")
    else:
      self._print_in_turn(f"step {text}")

  @contextlib.contextmanager
  def stage(
    self, text: str, total: int | None = None
  ) -> Iterator[Callable[[int], None]]:
    """Shows what is being done between steps, or within a long one.

    Args:
      text: for example `compiling`.
      total: number of things that the stage does, if it is known.

    Yields:
      A function to call with the number of things done so far.
    """

    def label(num_done: int) -> str:
      return text if total is None else f"{text} {num_done}/{total}"

    if not self._is_shown:
      yield lambda num_done: None
    elif self._bar is not None:
      bar, earlier = self._bar, self._bar.desc
      bar.set_description_str(label(0))
      try:
        yield lambda num_done: bar.set_description_str(label(num_done))
      finally:
        bar.set_description_str(earlier)
    else:
      latest = label(0)

      def report(num_done: int) -> None:
        nonlocal latest
        latest = label(num_done)
        if self._print_in_turn(latest):
          timer.cancel()

      # A stage that ends before the timer prints nothing.
      timer = threading.Timer(_STAGE_SECONDS, lambda: self._print(latest))
      timer.daemon = True
      timer.start()
      try:
        yield report
      finally:
        timer.cancel()

  def sampling(self, num_rows: int) -> Callable[[int, int], None]:
    """Shows how far a rollout is, if it takes long.

    Args:
      num_rows: number of completions.

    Returns:
      A function to call with the numbers of tokens and completions done.
    """
    begun, before = time.monotonic(), WATCH.now
    earlier = "" if self._bar is None else f"{self._bar.desc}  "

    def report(num_tokens: int, num_done: int) -> None:
      seconds = time.monotonic() - begun
      # What is compiled meanwhile says nothing of the pace.
      seconds = max(seconds - WATCH.now.since(before).seconds, 1e-3)
      if not self._is_shown or seconds < _STAGE_SECONDS:
        return
      pace = f"{num_tokens / seconds:,.0f} tokens/s"
      text = f"sampling {num_done}/{num_rows}  {pace}"
      if self._bar is not None:
        self._bar.set_description_str(earlier + text)
      else:
        self._print_in_turn(text)

    return report

  def _line_of_compiler(self) -> Callable[[str | None], None]:
    """Returns what shows a text of the compiler; None takes it away."""
    earlier = ours = ""

    def show(text: str | None) -> None:
      nonlocal earlier, ours
      if self._bar is None:
        if text is not None:
          self._print_in_turn(text)
        return
      if self._bar.desc != ours:
        # Something else is shown since then, and stays.
        earlier = self._bar.desc
        if text is None:
          return
      ours = earlier if text is None else f"{earlier}  {text}"
      self._bar.set_description_str(ours)

    return show

  def message(self, text: str) -> None:
    """Prints a line that stays, above the live one."""
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    elif self._is_shown:
      self._print(text)

  def warning(self, text: str) -> None:
    """Prints a line as `message` does, also if the run is quiet."""
    if self._is_shown:
      self.message(text)
    elif self._is_warning:
      self._print(text)

  def _time_left(self) -> list[str]:
    """Returns the estimated time of the remaining steps, if it is known."""
    # The first step compiles, so the pace is measured after it.
    first_step, begun = self._steps_at[0]
    step, now = self._steps_at[-1]
    if self._num_steps is None or step == first_step:
      return []
    pace = (now - begun) / (step - first_step)
    seconds = round(pace * (self._num_steps - step))
    return [f"{datetime.timedelta(seconds=seconds)} left"]

  def _print_in_turn(self, line: str) -> bool:
    is_due = time.monotonic() - self._printed_at >= self._interval
    if is_due:
      self._print(line)
    return is_due

  def _print(self, line: str) -> None:
    self._printed_at = time.monotonic()
    print(line, file=self._stream, flush=True)


@contextlib.contextmanager
def loading(
  text: str,
  *,
  is_shown: bool = True,
  stream: TextIO | None = None,
  interval: float = 10.0,
) -> Iterator[Callable[[int, int], None]]:
  """Shows how many bytes of a file are read, if it takes long.

  Args:
    text: what is read, for example `loading weights`.
    is_shown: true in one process only.
    stream: where to write; None means stderr.
    interval: smallest time between two lines in a log file, seconds.

  Yields:
    A function to call with the numbers of bytes done and of all bytes.
  """
  place = stream or sys.stderr
  if not is_shown:
    yield lambda num_done, num_total: None
  elif place.isatty():
    with tqdm.tqdm(
      desc=text,
      unit="B",
      unit_scale=True,
      delay=_STAGE_SECONDS,
      leave=False,
      file=place,
      **_size(place),
    ) as bar:

      def show(num_done: int, num_total: int) -> None:
        bar.total = num_total
        bar.update(num_done - bar.n)

      yield show
  else:
    begun = time.monotonic()
    next_at = begun + _STAGE_SECONDS

    def write(num_done: int, num_total: int) -> None:
      nonlocal next_at
      now = time.monotonic()
      if now >= next_at:
        next_at = now + interval
        done, total, pace = (
          f"{x / 1e9:.1f}"
          for x in (num_done, num_total, num_done / (now - begun))
        )
        print(f"{text} {done}/{total} GB  {pace} GB/s", file=place, flush=True)

    yield write


def print_line(text: str) -> None:
  """Prints a line that stays on stderr, above a live line, from any thread."""
  tqdm.tqdm.write(text, file=sys.stderr)
  sys.stderr.flush()


def warn(text: str) -> None:
  """Prints a warning above a live line, with the name of this process."""
  print_line(f"distil-jax: {process_group.label()}{text}")


def _size(terminal: TextIO) -> dict[str, Any]:
  """Returns the size options of tqdm: the window's, or 80 if it is unknown."""
  # Terminals in containers and CI report a size of 0 x 0.
  if all(os.get_terminal_size(terminal.fileno())):
    return {"dynamic_ncols": True}
  return {"ncols": 80, "nrows": 24}


def _fields(values: Mapping[str, Any]) -> list[str]:
  score = "reward" if "reward" in values else "loss"
  formats = ((score, score + " {:.3f}"), *_FIELDS)
  return [
    form.format(float(values[name])) for name, form in formats if name in values
  ]
