"""Counts what JAX compiles, and how long this process waits for it."""

import dataclasses
import threading
import time

from jax import monitoring

_TRACE = "/jax/core/compile/jaxpr_trace_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILE = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass(frozen=True)
class Compiled:
  """Holds what has been compiled since the process began.

  Attributes:
    seconds: Time for which the watched thread traced and compiled programs, or
      read them from the cache.
    num_programs: Programs, of all threads.
    num_from_cache: Those of them that the persistent cache had.
  """

  seconds: float = 0.0
  num_programs: int = 0
  num_from_cache: int = 0

  def since(self, earlier: "Compiled") -> "Compiled":
    """Returns what has been compiled after an earlier moment."""
    return Compiled(
      self.seconds - earlier.seconds,
      self.num_programs - earlier.num_programs,
      self.num_from_cache - earlier.num_from_cache,
    )


class CompileWatch:
  """Listens to what JAX tells of its compiler, for the life of the process."""

  def __init__(self):
    """Listens from now on."""
    self._thread = threading.get_ident()
    self._now = Compiled()
    self._lock = threading.Lock()
    # Stretches of the watched thread, apart from each other: one may turn out
    # to be a part of a longer one.
    self._spans: list[tuple[float, float]] = []
    self._pending: tuple[str, float] | None = None
    monitoring.register_event_listener(self._on_event)
    monitoring.register_event_duration_secs_listener(self._on_duration)

  @property
  def now(self) -> Compiled:
    """Returns the counts so far."""
    with self._lock:
      seconds = sum(end - begin for begin, end in self._spans)
      return dataclasses.replace(self._now, seconds=self._now.seconds + seconds)

  @property
  def pending(self) -> tuple[str, float] | None:
    """Returns the program being compiled, and for how long; None without."""
    pending = self._pending
    if pending is None:
      return None
    name, begun = pending
    return name, time.monotonic() - begun

  def settle(self) -> None:
    """Watches the calling thread; call it between programs."""
    now = self.now
    with self._lock:
      self._now, self._spans, self._pending = now, [], None
      self._thread = threading.get_ident()

  def _on_event(self, event: str, **_) -> None:
    if event == _CACHE_HIT:
      self._add(num_from_cache=1)

  def _on_duration(
    self, event: str, duration_secs: float, **details: str | int
  ) -> None:
    if event == _COMPILE:
      self._add(num_programs=1)
    if event not in (_TRACE, _LOWER, _COMPILE):
      return
    if threading.get_ident() != self._thread:
      return
    end = time.monotonic()
    begin = end - duration_secs
    if event == _LOWER:
      # The compiler's turn comes next, and it says nothing until it is done.
      name = str(details.get("fun_name", "a program"))
      self._pending = (name, end)
    elif event == _COMPILE:
      self._pending = None
    with self._lock:
      # Functions are traced within others, whose time has theirs in it. Middles
      # are compared, because two clocks may differ in where both begin.
      while self._spans and sum(self._spans[-1]) / 2 >= begin:
        self._spans.pop()
      self._spans.append((begin, end))

  def _add(self, **counts: int) -> None:
    with self._lock:
      added = {name: getattr(self._now, name) + n for name, n in counts.items()}
      self._now = dataclasses.replace(self._now, **added)


WATCH = CompileWatch()
"""The listener of this process: JAX keeps every one for good."""
