"""Writes the reference pages that come from the code.

  python -m docs.generate          # writes docs/reference/config.md and cli.md
  python -m docs.generate --check  # fails if a page is out of date

`tests/docs/test_reference.py` makes the same check.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator

import pydantic

from distil_jax import config
from distil_jax.cli import main as cli
from distil_jax.config import describe

FOLDER = pathlib.Path(__file__).parent / "reference"
_NOTE = "<!-- Written by `python -m docs.generate`; do not edit. -->"
# How often an argument may be given, as a reader of a manual knows it.
_SHOWN = {"*": "[{0} ...]", "+": "{0} [{0} ...]", "?": "[{0}]"}


def pages() -> dict[pathlib.Path, str]:
  """Returns the text of each generated page by its path."""
  return {
    FOLDER / "config.md": config_page(),
    FOLDER / "cli.md": cli_page(),
  }


def config_page() -> str:
  """Returns the page of all settings."""
  lines = [
    "# Config reference",
    "",
    _NOTE,
    "",
    "A config is one YAML file with the sections below. Every setting has a",
    "default. An unknown key is an error that names the nearest known one.",
    "On the command line a setting is `section.key=value`, for example",
    "`optimizer.learning_rate=1e-5`.",
    "",
    "The same in a terminal: `distil-jax config --explain optimizer`, or of",
    "one setting `--explain optimizer.learning_rate`, and all settings of a",
    "config: `distil-jax config CONFIG`. Editors complete and check a config",
    "by the schema that `distil-jax config --schema` prints: save it beside",
    "the config, whose first line is then",
    "`# yaml-language-server: $schema=config.schema.json`.",
    "",
  ]
  for name, field in config.Config.model_fields.items():
    members = describe.sections_of(field.annotation)
    if not members:
      continue
    lines += [f"## {name}", ""]
    if describe.is_optional(field.annotation):
      lines += [f"`{name}: null` (the default) leaves the section out.", ""]
    default = getattr(field.default, "kind", None)
    path = describe.path_of(name, field.annotation)
    for member in members:
      lines += _section(path, member, default if len(members) > 1 else None)
  return "\n".join(lines).rstrip() + "\n"


def _section(
  path: str, section: type[pydantic.BaseModel], default: str | None
) -> Iterator[str]:
  """Yields the lines of a section and of those inside it."""
  kind = section.model_fields.get("kind")
  if default is not None and kind is not None:
    note = " (default)" if kind.default == default else ""
    yield from (f"### {path}.kind: {kind.default}{note}", "")
  if text := describe.section_text(section):
    yield from (text, "")
  yield "| setting | type | default | |"
  yield "| --- | --- | --- | --- |"
  inner = []
  for name, field in section.model_fields.items():
    if name == "kind" and default is not None:
      continue  # the heading says it
    for nested in describe.inner_sections(name, field):
      inner.append(
        (describe.path_of(f"{path}.{name}", field.annotation), nested)
      )
    cells = (
      f"`{path}.{name}`",
      describe.type_text(field.annotation, field.metadata),
      describe.default_text(field),
      describe.text_of(field),
    )
    yield "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
  yield ""
  for name, nested in inner:
    yield from (f"#### {name}", "")
    yield from _section(name, nested, None)


def cli_page() -> str:
  """Returns the page of all commands."""
  parser = cli.build_parser()
  lines = [
    "# Command line",
    "",
    _NOTE,
    "",
    "`distil-jax COMMAND ...` or `python -m distil_jax COMMAND ...`. A command",
    "ends with status 0, with 1 after an error, with 2 if it was called with",
    "wrong arguments, and with 130 if it was interrupted.",
    "",
  ]
  (commands,) = (
    action
    for action in parser._actions
    if isinstance(action, argparse._SubParsersAction)
  )
  for name, command in commands.choices.items():
    words = [f"distil-jax {name}"]
    options = []
    for action in command._actions:
      if action.help == argparse.SUPPRESS or action.dest == "help":
        continue
      if action.option_strings:
        options.append(action)
      elif action.nargs in _SHOWN:
        words.append(_SHOWN[action.nargs].format(action.metavar))
      else:
        words.append(str(action.metavar or action.dest))
    lines += [f"## {name}", "", f"`{' '.join(words)} [options]`", ""]
    lines += [_sentence(command.description), ""]
    if command.epilog:
      lines += [_sentence(command.epilog), ""]
    lines += [f"For example: `{command.example}`", ""]
    lines += ["| option | |", "| --- | --- |"]
    for action in command._actions:
      if action.help in (argparse.SUPPRESS, None) or action.dest == "help":
        continue
      label = ", ".join(action.option_strings) or str(action.metavar)
      if action.option_strings and action.nargs != 0:
        label += f" {action.metavar or action.dest.upper()}"
      text = str(action.help).replace("|", "\\|")
      lines.append(f"| `{label}` | {text} |")
    lines.append("")
  return "\n".join(lines).rstrip() + "\n"


def _sentence(text: str | None) -> str:
  text = (text or "").strip()
  text = text[:1].upper() + text[1:]
  return text if text.endswith(".") else f"{text}."


def main() -> int:
  """Writes or checks the pages; returns the exit status."""
  parser = argparse.ArgumentParser(description="Writes the reference pages.")
  parser.add_argument("--check", action="store_true", help="write nothing")
  is_check = parser.parse_args().check
  status = 0
  for path, text in pages().items():
    if not is_check:
      path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
      print(f"{path} is out of date; run python -m docs.generate")
      status = 1
  return status


if __name__ == "__main__":
  sys.exit(main())
