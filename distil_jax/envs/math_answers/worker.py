"""Compares mathematical expressions in a `process_pool.Worker`.

python -m distil_jax.envs.math_answers.worker
"""

import functools
import importlib.util
import logging
import re
from typing import Any

from distil_jax.envs import process_pool
from distil_jax.envs.math_answers import compare as math_answers

INSTALL = "pip install 'distil_jax[math]'"
_MEMORY_BYTES = 4 * 2**30
# The parent has a time limit of its own, which is shorter.
_CPU_SECONDS = 60
_AND = re.compile(r"(?<![A-Za-z\\])and(?![A-Za-z])|\\land")


def is_installed() -> bool:
  """Returns True if math-verify is installed."""
  return importlib.util.find_spec("math_verify") is not None


def answer(question: list[str]) -> dict[str, Any]:
  """Compares two answers.

  Args:
    question: `[gold, answer]`, LaTeX without its dollars.

  Returns:
    `is_equal`, or `error` if the comparison fails.
  """
  gold, expression = question
  try:
    is_equal = math_answers.compare(gold, expression, _is_equal_formula)
  except (Exception, RecursionError, MemoryError) as error:
    return {"error": type(error).__name__}
  return {"is_equal": bool(is_equal)}


def _is_equal_formula(gold: str, expression: str) -> bool:
  import math_verify

  # With sympy, which a base install lacks; the pool's owner imports this file.
  from distil_jax.envs.math_answers import values as math_values

  wanted, found = list(_reference(gold)), _parsed(expression)
  # Its own time limits would set alarm signals; this process is killed.
  is_equal = math_verify.verify(
    wanted, found, allow_set_relation_comp=True, timeout_seconds=None
  )
  if not wanted or not found:
    return is_equal
  if not is_equal:
    sets = (math_values.as_set(*_conditions(x)) for x in (gold, expression))
    return math_values.is_same_set(*sets)
  return math_values.is_close(wanted[0], found[0])


def _conditions(text: str) -> tuple[list[Any], bool]:
  """Returns the parts of `x < 1 or x > 2`, and if all must hold."""
  parts = math_answers.items(text)
  parsed = [found[0] for found in map(_reference, parts) if found]
  is_all = len(parsed) == len(parts)
  return (parsed if is_all else []), _AND.search(text) is not None


@functools.lru_cache(maxsize=1024)
def _reference(text: str) -> tuple[Any, ...]:
  """Parses a reference; completions of a group share one, so it is cached."""
  return tuple(_parsed(text))


@functools.cache
def _extraction() -> Any:
  import math_verify
  from latex2sympy2_extended import NormalizationConfig

  # Units are compared before: without them `x + 2t` would be `x + 2`.
  return math_verify.LatexExtractionConfig(
    normalization_config=NormalizationConfig(
      units=False, malformed_operators=True, nits=True, boxed="none"
    )
  )


def _parsed(text: str) -> list[Any]:
  import math_verify

  text = text.replace("°", "^\\circ ")
  return math_verify.parse(
    f"${text}$",
    extraction_config=[_extraction()],
    parsing_timeout=None,  # pyright: ignore[reportArgumentType]
  )


if __name__ == "__main__":
  # math-verify logs every answer that it cannot parse.
  logging.disable()
  importlib.import_module("math_verify")
  process_pool.serve(answer, memory_bytes=_MEMORY_BYTES, seconds=_CPU_SECONDS)
