"""Lists the families that come with the package, each with its question."""

import functools

from distil_jax.analysis.comparison.problem_families import Family, Route


def _codes(length: int, preference: float, *, num_known: int = 0):
  """Returns a route with a code that can be learned, and one with noise."""
  return (
    Route(("code",) * length, preference, 0.1, num_known),
    Route(("fresh",) * length, 1.0 - preference, 0.1),
  )


def _work_or_guess(
  num_steps: int, accuracy: float, *, before: int = 0, others_before: int = 0
):
  """Returns a route with steps of a code, and one with a guessed digit.

  Fillers may precede both.
  """
  return (
    Route(("filler",) * before + ("code",) * num_steps, 0.25, accuracy),
    Route(("filler",) * others_before + ("fresh",), 0.75, 0.1),
  )


# Running totals, which the base model can do, and the sum in one step.
_TOTALS = (
  Route(("total",) * 4, 0.25, 0.98),
  Route(("sum",), 0.75, 0.1),
)


# Families whose feedback holds the digits of all routes, and in which every
# digit counts.
_traced = functools.partial(Family, feedback="traces", checks_all=True)

FAMILIES: dict[str, Family] = {
  "sparse": _traced(
    "The base never succeeds; feedback carries the whole answer.",
    num_digits=6,
    routes=(Route(("code",) * 6, 1.0, 0.1),),
  ),
  "early": Family(
    "The first token chooses between working step by step and guessing; the "
    "difference shows only at the end.",
    num_digits=4,
    routes=_TOTALS,
    feedback="answer",
  ),
  "combined": _traced(
    "Sparse and early at once: no success at all, and three times in four the "
    "base takes the route that cannot be learned.",
    num_digits=6,
    routes=_codes(6, 0.25),
  ),
  "rare": _traced(
    "As combined, but the route that can be learned is taken 6 times in 100.",
    num_digits=6,
    routes=_codes(6, 0.06),
  ),
  "unsure": _traced(
    "The better route is at first the worse one: its five steps are right "
    "half of the time each, and only practice makes it pay.",
    num_digits=5,
    routes=_work_or_guess(5, 0.5),
  ),
  "entropy": _traced(
    "The better route has four free tokens, which cost a teacher's own entropy "
    "without being wrong.",
    num_digits=3,
    routes=_work_or_guess(3, 0.98, before=4),
  ),
  "length": _traced(
    "The worse route is twice as long and mostly free, so means over its "
    "tokens hide what it costs.",
    num_digits=3,
    routes=_work_or_guess(3, 0.98, others_before=8),
  ),
  "partial": Family(
    "A sibling's success is the only feedback there is.",
    num_digits=4,
    routes=_TOTALS,
    feedback="sibling",
  ),
  "mixed": _traced(
    "Problems of every difficulty: the base knows the code of half of the "
    "digits.",
    num_digits=6,
    routes=_codes(6, 0.25, num_known=5),
  ),
  "noisy": _traced(
    "As mixed, but one problem in four gets another problem's feedback.",
    num_digits=6,
    routes=_codes(6, 0.25, num_known=5),
    wrong_feedback=0.25,
  ),
  "long": _traced(
    "As combined, with completions of 32 tokens.",
    num_digits=30,
    routes=_codes(30, 0.25),
  ),
}
