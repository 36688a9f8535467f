"""What docs/guides/tools.md shows: it loads, and does what is said of it."""

import re

import pytest
import yaml

from distil_jax import config as configs
from distil_jax.envs import tools
from distil_jax.types import Problem
from tests.paths import ROOT

GUIDE = ROOT / "docs/guides/tools.md"
PROBLEM = Problem(index=0, messages=(), answer="")


def blocks(language):
  text = GUIDE.read_text(encoding="utf-8")
  return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_its_settings_load(tmp_path):
  path = tmp_path / "trial.yaml"
  for block in blocks("yaml"):
    data = {"train": "a.jsonl", "evaluation": "a.jsonl"}
    path.write_text(yaml.safe_dump({**yaml.safe_load(block), "data": data}))
    found = configs.load(path).tools
    assert found.kind in ("python", "own")
  assert len(blocks("yaml")) == 2


@pytest.mark.parametrize(
  ("said", "shown"),
  [
    ("<look>water</look>", "H2O"),
    ("<look>salt</look> or <look>gold</look>", "not in the table"),
    ("It is salt.", None),
  ],
)
def test_its_tool_answers(tmp_path, monkeypatch, said, shown):
  monkeypatch.chdir(tmp_path)
  (source,) = blocks("python")
  (tmp_path / "look_up.py").write_text(source)
  settings = yaml.safe_load(blocks("yaml")[1])["tools"]
  tool = tools.make_tool(settings["kind"], missing=settings["missing"])
  assert tool(PROBLEM, [said], []) == shown
