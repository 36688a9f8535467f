"""Reads the samples that a run has written, one a line."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from distil_jax.training.logging.rollout_pages import step_of_page
from distil_jax.training.logging.tables import ReportError


def read_folder(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the records of a folder's `step_*.jsonl`, each with its `step`.

  A last line that was cut off is left out.

  Raises:
    ReportError: another line is not a record.
  """
  for path in sorted(folder.glob("step_*.jsonl")):
    # A process of several has its number before the ending.
    step = step_of_page(pathlib.Path(path.name.partition(".")[0]))
    if step < 0:
      continue  # somebody's notes
    # A line break inside a text is escaped, so only "\n" separates records.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
      try:
        record = json.loads(line)
        yield {"step": step, **record}
      except (ValueError, TypeError) as error:
        raise ReportError(
          f"{path}:{number} is no sample: {line[:80]!r}; delete the line"
        ) from error
