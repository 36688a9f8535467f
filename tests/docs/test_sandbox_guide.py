"""The guide says what is so."""

import contextlib
import io
import re

from tests.paths import ROOT

GUIDE = ROOT / "docs/guides/sandbox.md"


def test_the_example_prints_what_it_says():
  (block,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
  said = re.findall(r"print\(.*\)  # (.+)", block)
  written = io.StringIO()
  with contextlib.redirect_stdout(written):
    exec(compile(block, "guide", "exec"), {})
  lines = [line for line in written.getvalue().splitlines() if line]
  assert lines == said == ["exited 42", "1", "timeout"]
