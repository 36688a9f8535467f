"""Looks less often for garbage, of which tracing leaves little."""

import gc


def collect_rarely() -> None:
  """What is there now is never looked at again."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)
