"""Gives readers damaged inputs, and names those that are not dealt with.

  python -m benchmarks.fuzz --num 20000 jsonl config
  python -m benchmarks.fuzz --first 4711 --num 1 jsonl

Each input must end in the reader's own error or be read; a row that cannot be
used is counted. The status is 1 if one ends otherwise.
"""

import argparse
import pathlib
import sys
import tempfile
import time

from benchmarks.fuzz import trials
from benchmarks.fuzz.readers import READERS

# Faults of a reader that are shown.
_NUM_SHOWN = 5


def main() -> int:
  """Runs the readers, and prints a line for each."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("readers", nargs="*", metavar="READER", default=[])
  parser.add_argument("--num", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--first", type=int, default=0)
  arguments = parser.parse_args()
  if unknown := set(arguments.readers) - set(READERS):
    parser.error(f"no reader {sorted(unknown)}; there are {sorted(READERS)}")
  num_faults = 0
  for name in arguments.readers or READERS:
    with tempfile.TemporaryDirectory() as folder:
      started = time.monotonic()
      found = trials.run(
        name,
        pathlib.Path(folder),
        num=arguments.num,
        seed=arguments.seed,
        first=arguments.first,
      )
    num_faults += len(found.faults)
    print(
      f"{name:17} {found.num_read:6} read {found.num_refused:6} refused "
      f"{len(found.faults):5} faults {time.monotonic() - started:6.0f} s",
      flush=True,
    )
    for number, fault, content in found.faults[:_NUM_SHOWN]:
      print(f"  input {number}: {fault}\n    {content!r:.300}", flush=True)
  return 1 if num_faults else 0


if __name__ == "__main__":
  sys.exit(main())
