"""Writes the reference pages that come from the code.

  python -m docs.generate          # writes docs/reference/config.md and cli.md
  python -m docs.generate --check  # fails if a page is out of date

`tests/docs/test_reference.py` makes the same check.
"""

import argparse
import pathlib
import sys
import types
import typing
from collections.abc import Iterator

import pydantic
import yaml
from pydantic_core import PydanticUndefined

from distil_jax import config
from distil_jax.cli import main as cli

FOLDER = pathlib.Path(__file__).parent / "reference"
_NOTE = "<!-- Written by `python -m docs.generate`; do not edit. -->"
# Pydantic keeps bounds as objects with these attributes.
_BOUNDS = {
  "gt": ("> ", ""),
  "ge": (">= ", ""),
  "lt": ("< ", ""),
  "le": ("<= ", ""),
  "multiple_of": ("multiple of ", ""),
  "min_length": ("at least ", " characters"),
}
# Upper limits of whole numbers that say nothing to a reader.
_TECHNICAL = (2**31, 2**32)


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
  ]
  for name, field in config.Config.model_fields.items():
    members = _sections(field.annotation)
    if not members:
      continue
    lines += [f"## {name}", ""]
    if _is_optional(field.annotation):
      lines += [f"`{name}: null` (the default) leaves the section out.", ""]
    default = getattr(field.default, "kind", None)
    path = _path(name, field.annotation)
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
  text = " ".join((section.__doc__ or "").split())
  if text and section.__doc__ != pydantic.BaseModel.__doc__:
    yield from (text, "")
  yield "| setting | type | default | |"
  yield "| --- | --- | --- | --- |"
  inner = []
  for name, field in section.model_fields.items():
    if name == "kind" and default is not None:
      continue  # the heading says it
    nested = _sections(field.annotation)
    # What is described elsewhere is not repeated.
    is_told = f"see `{name}`" in (field.description or "")
    if len(nested) == 1 and not is_told:
      inner.append((_path(f"{path}.{name}", field.annotation), nested[0]))
    cells = (
      f"`{path}.{name}`",
      _type(field.annotation, field.metadata),
      _default(field),
      " ".join((field.description or "").split()),
    )
    yield "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
  yield ""
  for name, nested in inner:
    yield from (f"#### {name}", "")
    yield from _section(name, nested, None)


def _sections(annotation: typing.Any) -> list[type[pydantic.BaseModel]]:
  """Returns the sections that an annotation can hold."""
  if isinstance(annotation, type):
    is_section = issubclass(annotation, pydantic.BaseModel)
    return [annotation] if is_section else []
  origin = typing.get_origin(annotation)
  arguments = typing.get_args(annotation)
  if origin in (typing.Annotated, tuple):
    arguments = arguments[:1]
  elif origin is dict:
    arguments = arguments[1:]
  elif origin not in (typing.Union, types.UnionType):
    return []
  return [section for part in arguments for section in _sections(part)]


def _path(path: str, annotation: typing.Any) -> str:
  """Returns the path of a section, or of one of several by name."""
  is_by_name = typing.get_origin(annotation) is dict
  return f"{path}.NAME" if is_by_name else path


def _is_optional(annotation: typing.Any) -> bool:
  return type(None) in typing.get_args(annotation)


def _type(annotation: typing.Any, metadata: typing.Sequence[object]) -> str:
  """Returns a type as a reader of YAML knows it, with its bounds."""
  origin = typing.get_origin(annotation)
  arguments = typing.get_args(annotation)
  if origin is typing.Annotated:
    return _type(arguments[0], [*_flat(arguments[1:]), *metadata])
  if annotation is type(None):
    return "null"
  nested = _sections(annotation)
  if nested and origin is tuple:
    return "list of sections"
  if nested and origin is dict:
    return "sections by name"
  if nested:
    is_optional = " or null" if _is_optional(annotation) else ""
    return f"section{is_optional}"
  if origin in (typing.Union, types.UnionType):
    return " or ".join(_type(part, metadata) for part in arguments)
  if origin is typing.Literal:
    return ", ".join(f"`{value}`" for value in arguments)
  if origin is tuple:
    if arguments[-1] is Ellipsis:
      return f"list of {_type(arguments[0], [])}"
    return "[" + ", ".join(_type(part, []) for part in arguments) + "]"
  if origin is dict:
    return "mapping"
  name = {bool: "true or false", str: "text", float: "number", int: "integer"}
  bounds = [text for item in _flat(metadata) for text in _bounds(item)]
  return f"{name.get(annotation, annotation)} {', '.join(bounds)}".strip()


def _flat(metadata: typing.Iterable[object]) -> list[object]:
  """Returns the constraints themselves, which a field info may hold."""
  found = []
  for item in metadata:
    found += getattr(item, "metadata", None) or [item]
  return found


def _bounds(constraint: object) -> Iterator[str]:
  for name, (before, after) in _BOUNDS.items():
    value = getattr(constraint, name, None)
    if value is not None and value not in _TECHNICAL:
      yield f"{before}{value}{after}"


def _default(field: pydantic.fields.FieldInfo) -> str:
  value = field.default
  if value is PydanticUndefined:
    return "required"
  if isinstance(value, pydantic.BaseModel):
    return "its defaults"
  if value is None:
    return "`null`"
  if isinstance(value, bool):
    return f"`{str(value).lower()}`"
  is_nested = isinstance(value, dict)
  if isinstance(value, tuple):
    is_nested = any(isinstance(x, pydantic.BaseModel) for x in value)
    value = [
      x.model_dump(exclude_defaults=True)
      if isinstance(x, pydantic.BaseModel)
      else x
      for x in value
    ]
  if is_nested:
    value = yaml.safe_dump(
      value, default_flow_style=True, sort_keys=False, width=1000
    ).strip()
  return f"`{value}`" if value != "" else '`""`'


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
      elif action.nargs == "*":
        words.append(f"[{action.metavar} ...]")
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
