"""Executes every code block of the README and of docs/.

Python runs, in the order of a page. YAML is read as a config. In shell blocks
the arguments of `distil-jax` go through the real parser, settings through the
schema, and files, targets and modules that are named must exist. A comment
before a block makes an exception and gives the reason, see `pages.Block`.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil

import pytest

from distil_jax import config
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.cli import main
from distil_jax.data import teacher_templates
from tests.docs import pages
from tests.paths import ROOT

SHELL = ("bash", "console", "sh")
KNOWN = (*SHELL, "python", "yaml", "jinja", "text", "json", "mermaid")
# `distil-jax` and what follows, up to a comment, a pipe or a second command.
_COMMAND = re.compile(r"distil-jax\s+([^#|&;\n]*)")


def pages_with(*languages):
  found = [page for page in pages.PAGES if pages.blocks(page, *languages)]
  return pytest.mark.parametrize("page", found, ids=pages.name_of)


def commands(block):
  """Yields the lines of a shell block, each continued line as one."""
  text = block.text.replace("\\\n", " ")
  lines = text.splitlines()
  if block.language == "console":
    lines = [line[2:] for line in lines if line.startswith("$ ")]
  yield from (line.strip() for line in lines if line.strip())


@pages_with("", *KNOWN)
def test_every_block_names_a_language(page):
  for block in pages.blocks(page, ""):
    raise AssertionError(f"{page}:{block.line} has no language")
  text = page.read_text(encoding="utf-8")
  fences = re.findall(r"^```(\w+)$", text, re.MULTILINE)
  assert not set(fences) - set(KNOWN)
  assert len(fences) == len(pages.blocks(page, *KNOWN))


@pages_with("jinja")
def test_templates_can_be_used(page, tmp_path):
  for block in pages.blocks(page, "jinja"):
    path = tmp_path / "teacher.jinja"
    path.write_text(block.text, encoding="utf-8")
    teacher_templates.load(str(path))


@pages_with("python")
def test_python_runs(page, tmp_path, monkeypatch):
  needed = {b.option("needs") for b in pages.blocks(page, "python")} - {None}
  missing = [program for program in needed if not shutil.which(program)]
  if missing:
    pytest.skip(f"needs {missing}")
  monkeypatch.chdir(ROOT)
  monkeypatch.syspath_prepend(tmp_path)
  names = {"__name__": "__main__"}
  for block in pages.blocks(page, "python"):
    if block.option("not run"):
      continue
    if name := block.option("file"):
      (tmp_path / name).write_text(block.text, encoding="utf-8")
    exec(block.option("setup") or "", names)
    code = compile(block.text, f"{pages.name_of(page)}:{block.line}", "exec")
    with contextlib.redirect_stdout(io.StringIO()):
      exec(code, names)


@pages_with("yaml")
def test_yaml_is_accepted_by_the_schema(page, tmp_path):
  for block in pages.blocks(page, "yaml"):
    if block.option("not parsed"):
      continue
    path = tmp_path / "block.yaml"
    path.write_text(block.text, encoding="utf-8")
    config.load(path)


@pages_with(*SHELL)
def test_commands_are_accepted_by_the_parser(page):
  for block in pages.blocks(page, *SHELL):
    for line in commands(block):
      for words in _COMMAND.findall(line):
        check_command(shlex.split(words.rstrip("'")))


def check_command(words):
  # `export CONFIG DIRECTORY`: an upper-case word stands for the reader's own.
  try:
    arguments = main.parse_arguments(words)
  except SystemExit as error:
    raise AssertionError(f"distil-jax {' '.join(words)}") from error
  path = getattr(arguments, "config", None)
  if path is None or path == "CONFIG" or not path.startswith("configs/"):
    return
  assert (ROOT / path).is_file(), f"{path} does not exist"
  settings = [w for w in arguments.overrides if re.match(r"\w+\.\w", w)]
  schema = Comparison if words[0] == "compare" else config.Config
  config.load_as(schema, ROOT / path, settings)
  if sizes := getattr(arguments, "num_params_from", None):
    assert (ROOT / sizes).is_file(), f"{sizes} does not exist"


@pages_with(*SHELL)
def test_targets_modules_and_extras_exist(page):
  makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
  setup = (ROOT / "setup.py").read_text(encoding="utf-8")
  for block in pages.blocks(page, *SHELL):
    for line in commands(block):
      command = line.partition("#")[0]
      if command.startswith("make "):
        targets = [word for word in command.split()[1:] if "=" not in word]
        for target in targets:
          assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
      for module in re.findall(r"python -m ([\w.]+)", command):
        assert importlib.util.find_spec(module), line
      for extras in re.findall(r"\.\[([\w,-]+)\]", command):
        for extra in extras.split(","):
          assert f'"{extra}": [' in setup, line
      for name in re.findall(r"\b(?:configs|benchmarks)/[\w./-]+", command):
        assert (ROOT / name).exists(), line


def test_exceptions_give_a_reason():
  for page in pages.PAGES:
    for block in pages.blocks(page, *KNOWN):
      key, _, value = block.marker.partition(": ")
      if key in ("not run", "not parsed"):
        assert len(value.split()) >= 4, f"{page}:{block.line}"
