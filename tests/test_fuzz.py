"""Readers refuse damaged files in their own words; more in benchmarks.fuzz."""

import pytest

from benchmarks.fuzz import trials
from benchmarks.fuzz.readers import READERS

# What once was no clear error, by the numbers of the inputs.
KNOWN = {"model_config": (540,), "tokenizer_config": (38,)}
NUM = 40


@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_are_refused_or_read(name, tmp_path):
  found = trials.run(name, tmp_path, num=NUM)
  assert not found.faults
  assert found.num_refused
  for number in KNOWN.get(name, ()):
    assert not trials.run(name, tmp_path, num=1, first=number).faults


def test_a_fault_is_seen(tmp_path, monkeypatch):
  reader = READERS["csv"]
  for read, text in (
    (lambda path: {}["x"], "KeyError"),
    (lambda path: __import__("os").system("true"), "runs code: os.system"),
  ):
    changed = type(reader)(reader.make, read, reader.name, reader.errors)
    monkeypatch.setitem(READERS, "csv", changed)
    found = trials.run("csv", tmp_path, num=1)
    assert next(fault for _, fault, _ in found.faults).startswith(text)
