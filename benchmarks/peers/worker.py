"""Answers a peer's requests: one line on stdin, one line on stdout."""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Sampler(Protocol):
  """The sampler that a worker runs."""

  def generate(
    self, prompt_ids: Any, num_tokens: int, temperature: float, seed: int
  ) -> Any:
    """Returns completion ids `[B, T]` on the host for prompt ids `[B, S]`."""
    ...

  def check(self, prompt_ids: Any, completion_ids: Any) -> dict[str, float]:
    """Returns `greedy`, `surprisal` and `entropy` by a pass without a cache."""
    ...


def serve(
  name: str,
  make: Callable[[Mapping[str, int]], Sampler],
  *,
  packages: Sequence[str],
) -> None:
  """Answers until stdin ends.

  Args:
    name: name of the sampler with its settings.
    make: makes the sampler from the sizes of the network.
    packages: packages whose versions are part of the answer.
  """
  # All that the libraries print goes to stderr, also from C: it must not be
  # taken for an answer.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def answer(**fields: object) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()

  sampler = make(json.loads(sys.argv[1]))
  described = {
    "name": name,
    "versions": {p: importlib.metadata.version(p) for p in packages},
  }
  answer(ready=True, **described)
  warm = set()
  for line in sys.stdin:
    request = json.loads(line)
    is_checked = request.pop("is_checked")
    prompt_ids = request["prompt_ids"]
    # A new case may compile, which is not timed. It runs twice, because Tunix
    # compiles a comparison of its settings in the second call.
    case = (
      len(prompt_ids),
      len(prompt_ids[0]),
      request["num_tokens"],
      request["temperature"],
    )
    if case not in warm:
      for _ in range(2):
        sampler.generate(**request)
      warm.add(case)
    start = time.perf_counter()
    completion_ids = sampler.generate(**request)
    seconds = time.perf_counter() - start
    checked = {}
    if is_checked:
      checked = sampler.check(prompt_ids, completion_ids)
      checked["completion_ids"] = completion_ids.tolist()
    answer(
      seconds=seconds,
      num_tokens=sum(map(len, completion_ids)),
      **described,
      **checked,
    )
