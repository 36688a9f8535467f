"""Compares mathematical expressions in a `process_pool.Worker`.

python -m distil_jax.envs.math_worker
"""

import functools
import importlib.util
import logging
from typing import Any

from distil_jax.envs import process_pool

INSTALL = "pip install 'distil_jax[math]'"
_MEMORY_BYTES = 4 * 2**30
# The parent has a time limit of its own, which is shorter.
_CPU_SECONDS = 60


def is_installed() -> bool:
  """Returns True if math-verify is installed."""
  return importlib.util.find_spec("math_verify") is not None


def answer(question: list[str]) -> dict[str, Any]:
  """Compares two expressions.

  Args:
    question: `[reference, expression]`, LaTeX without its dollars.

  Returns:
    `is_equal`, or `error` if the comparison fails.
  """
  import math_verify

  reference, expression = question
  try:
    found = _parsed(expression)
    # Its own time limits would set alarm signals; this process is killed.
    is_equal = math_verify.verify(
      list(_reference(reference)), found, timeout_seconds=None
    )
  except (Exception, RecursionError, MemoryError) as error:
    return {"error": type(error).__name__}
  return {"is_equal": bool(is_equal)}


@functools.lru_cache(maxsize=1024)
def _reference(text: str) -> tuple[Any, ...]:
  """Parses a reference; completions of a group share one, so it is cached."""
  return tuple(_parsed(text))


def _parsed(text: str) -> list[Any]:
  import math_verify

  return math_verify.parse(
    f"${text}$",
    extraction_config=[math_verify.LatexExtractionConfig()],
    parsing_timeout=None,  # pyright: ignore[reportArgumentType]
  )


if __name__ == "__main__":
  # math-verify logs every answer that it cannot parse.
  logging.disable()
  importlib.import_module("math_verify")
  process_pool.serve(answer, memory_bytes=_MEMORY_BYTES, seconds=_CPU_SECONDS)
