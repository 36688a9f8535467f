"""The guide's figures of adapters are those of the runs that it names."""

import re
import sys

from tests.paths import ROOT

# Benchmarks are not installed with the package.
sys.path.append(str(ROOT))

from benchmarks import adapter_memory


def test_the_guide_says_what_states_take():
  lines = adapter_memory.table()
  assert "\n".join(lines) in adapter_memory.DOCUMENT.read_text()
  # At rank 64, of a model that would train in bfloat16.
  for line in lines:
    if "| 64 |" in line:
      assert float(re.findall(r"([\d.]+) %", line)[-1]) < 2
