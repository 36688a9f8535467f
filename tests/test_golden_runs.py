"""Every objective computes what it did when the golden runs were made.

The programs of tests are compiled with less optimisation, so that the last
bits may differ; `python -m tests.golden_runs` compares exactly.
"""

from tests import commands, golden_runs

OBJECTIVES = ("distil", "sdpo", "opsd", "minillm", "grpo", "sft")


def test_every_objective_trains_as_before(tmp_path):
  arguments = ["--tolerance", "1e-4", "--only", *OBJECTIVES]
  program = ("-m", golden_runs.__name__)
  with commands.start(arguments, tmp_path / "compiled", program) as process:
    out, err = process.communicate(timeout=900)
  assert process.returncode == 0, out + err


def test_a_difference_is_named():
  old, new = {"a": [1.0, 2.0]}, {"a": [1.0, 2.1], "b": "x"}
  assert golden_runs.differences(old, new, tolerance=0.0) == [
    "/a/1: 2.0 before, 2.1 now",
    "/b: None before, x now",
  ]
