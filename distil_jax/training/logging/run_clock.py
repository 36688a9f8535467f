"""Measures where the time of a run goes, and traces a few of its steps."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping

import jax

from distil_jax.config.training import ProfileConfig
from distil_jax.training.logging import speed_metrics
from distil_jax.training.logging.compile_watch import WATCH, Compiled
from distil_jax.training.step_work import Work

USEFUL, COMPILING, JUDGING, OTHER = "useful", "compile", "judge_wait", "other"


class StepClock:
  """Measures the phases of one step.

  Attributes:
    seconds: Time of each phase that is done.
    compiled: What the step has compiled, once it is done.
  """

  def __init__(self):
    """Starts the clock."""
    self.seconds: dict[str, float] = {}
    self.compiled = Compiled()
    self._begun = time.monotonic()
    self._before = WATCH.now

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Measures a phase, and names it in a trace."""
    begun = time.monotonic()
    with jax.profiler.TraceAnnotation(name):
      yield
    self.seconds[name] = time.monotonic() - begun

  def stop(self) -> None:
    """Ends the step, whose time is that of its phases and between them."""
    self.seconds["step"] = time.monotonic() - self._begun
    self.compiled = WATCH.now.since(self._before)


class RunClock:
  """Divides the time of a run by what it is spent on.

  Attributes:
    step: The clock of the step that is under way, or was last.
  """

  def __init__(
    self,
    profile: ProfileConfig,
    directory: pathlib.Path,
    before: Mapping[str, float] | None = None,
  ):
    """Starts the clock.

    Args:
      profile: Which steps are traced.
      directory: The folder of the traces.
      before: Seconds by cause of the run so far, if it is resumed.
    """
    WATCH.settle()
    self.step = StepClock()
    self._profile = profile
    self._directory = directory
    self._is_tracing = False
    self._before = dict(before or {})
    self._known: dict[str, float] = {}
    self._begun, self._compiled = time.monotonic(), WATCH.now

  @property
  def seconds(self) -> dict[str, float]:
    """Seconds by cause since the run began, those before a resume included."""
    known = dict(self._known)
    known[COMPILING] = WATCH.now.since(self._compiled).seconds
    total = time.monotonic() - self._begun
    # Threads that judge or save may overlap with the rest.
    known[OTHER] = max(total - sum(known.values()), 0.0)
    causes = dict.fromkeys([*self._before, *known])
    return {x: self._before.get(x, 0.0) + known.get(x, 0.0) for x in causes}

  @property
  def compiled(self) -> Compiled:
    """Returns the counts of this process since the clock started."""
    return WATCH.now.since(self._compiled)

  def resumed(self, before: Mapping[str, float]) -> None:
    """Adds the seconds by cause of the run before it was resumed."""
    self._before = dict(before)

  @contextlib.contextmanager
  def lost(self, cause: str) -> Iterator[None]:
    """Counts what is done as lost for a cause, but for compiling."""
    begun, before = time.monotonic(), self._counted()
    try:
      with jax.profiler.TraceAnnotation(cause):
        yield
    finally:
      # Something else that is lost within has its own cause.
      within = self._counted() - before
      self._add(cause, time.monotonic() - begun - within)

  @contextlib.contextmanager
  def each_step(self, step: int) -> Iterator[StepClock]:
    """Measures a step, and traces it if it is one of those to trace.

    Args:
      step: The training step, counted from 1.
    """
    self._trace(step)
    WATCH.settle()
    self.step = StepClock()
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield self.step

  def step_metrics(
    self, work: Work, *, num_tokens: float, judging_seconds: float | None
  ) -> dict[str, float]:
    """Returns metrics of the last step, and counts it as useful.

    What it spent on compiling and on judges has causes of its own.

    Args:
      work, num_tokens, judging_seconds: see `speed_metrics.speed_metrics`.
    """
    seconds, compiled = self.step.seconds, self.step.compiled
    waited = judging_seconds or 0.0
    self._add(JUDGING, waited)
    useful = seconds["step"] - compiled.seconds - waited
    self._add(USEFUL, max(useful, 0.0))
    return speed_metrics.memory_metrics() | speed_metrics.speed_metrics(
      work,
      seconds,
      compiled,
      num_tokens=num_tokens,
      judging_seconds=judging_seconds,
    )

  def close(self) -> None:
    """Ends a trace that is under way."""
    if self._is_tracing:
      self._is_tracing = False
      jax.profiler.stop_trace()

  def _trace(self, step: int) -> None:
    """Starts or stops the trace before a step."""
    first = self._profile.start_step
    if first is None:
      return
    is_due = first <= step < first + self._profile.num_steps
    if is_due and not self._is_tracing:
      jax.profiler.start_trace(self._directory)
      self._is_tracing = True
    elif not is_due:
      self.close()

  def _add(self, cause: str, seconds: float) -> None:
    self._known[cause] = self._known.get(cause, 0.0) + seconds

  def _counted(self) -> float:
    return sum(self._known.values()) + WATCH.now.seconds


def sentence(seconds: Mapping[str, float], compiled: Compiled) -> str:
  """Returns how much of a run was useful, and what took the rest.

  Args:
    seconds: By cause, as `RunClock.seconds`.
    compiled: What was compiled.
  """
  total = max(sum(seconds.values()), 1e-9)
  shares = {cause: value / total for cause, value in seconds.items()}
  lost = [
    f"{cause.replace('_', ' ')} {100 * share:.1f} %"
    for cause, share in sorted(shares.items(), key=lambda x: -x[1])
    if cause != USEFUL and share >= 0.001
  ]
  goodput = 100 * shares.get(USEFUL, 0.0)
  return (
    f"goodput {goodput:.1f} % of {total:,.0f} s"
    + (f"; lost: {', '.join(lost)}" if lost else "")
    + f"; programs: {compiled.num_programs}, of which "
    f"{compiled.num_from_cache} were in the cache"
  )
