"""Whether two mathematical expressions are equal; runs in a `workers.Worker`.

python -m distil_jax.envs.math_worker
"""

import functools
import importlib.util
import logging
from typing import Any

from distil_jax.envs import process_pool

INSTALL = "pip install 'distil_jax[math]'"
_MEMORY_BYTES = 4 * 2**30
# Of CPU. The one who asks has a deadline of its own, which comes before.
_SECONDS = 60


def is_installed() -> bool:
  """Whether what compares is there."""
  return importlib.util.find_spec("math_verify") is not None


def answer(question: list[str]) -> dict[str, Any]:
  """`[reference, expression]`, LaTeX without its dollars.

  Returns:
    `is_equal`; or `error`, where the comparison fails.
  """
  import math_verify

  reference, expression = question
  try:
    found = _parsed(expression)
    # By its own timeouts it would set alarms.
    is_equal = math_verify.verify(
      list(_reference(reference)), found, timeout_seconds=None
    )
  except (Exception, RecursionError, MemoryError) as error:
    return {"error": type(error).__name__}
  return {"is_equal": bool(is_equal)}


@functools.lru_cache(maxsize=1024)
def _reference(text: str) -> tuple[Any, ...]:
  """Members of a group have the same one."""
  return tuple(_parsed(text))


def _parsed(text: str) -> list[Any]:
  import math_verify

  return math_verify.parse(
    f"${text}$",
    extraction_config=[math_verify.LatexExtractionConfig()],
    parsing_timeout=None,  # pyright: ignore[reportArgumentType]
  )


if __name__ == "__main__":
  logging.disable()
  importlib.import_module("math_verify")
  process_pool.serve(answer, memory_bytes=_MEMORY_BYTES, seconds=_SECONDS)
