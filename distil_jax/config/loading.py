"""Reads a YAML file and overrides into a `Config`, or explains the mistake."""

import difflib
import functools
import pathlib
import re
import typing
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import pydantic
import yaml

from distil_jax.config.base import ConfigError, Section
from distil_jax.config.schema import Config

S = typing.TypeVar("S", bound=Section)


def load(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> Config:
  """Reads a YAML config and applies `section.key=value` overrides.

  Raises:
    ConfigError: the file is missing or not a mapping, a key is unknown, or a
      value does not fit. It lists all mistakes, one per line.
  """
  return load_as(Config, path, overrides)


def load_as(
  schema: type[S], path: str | pathlib.Path, overrides: Sequence[str] = ()
) -> S:
  """Reads YAML settings of any schema; see `load`.

  Raises:
    ConfigError: as for `load`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConfigError(f"no config file at {path.absolute()}")
  try:
    tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
  # Of a date or a number that cannot be, YAML raises a plain ValueError.
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    raise ConfigError(f"{path} is not valid YAML: {error}") from error
  if tree is None:
    tree = {}
    warnings.warn(
      f"{path} is empty: every setting has its default value", stacklevel=2
    )
  if not isinstance(tree, dict):
    raise ConfigError(f"{path} must hold a mapping of sections")
  if schema is Config and "arms" in tree:
    raise ConfigError(
      f"{path} has arms, so it compares objectives: use distil-jax compare "
      f"{path}"
    )
  # Anchors that several sections use may stand there.
  tree = {k: x for k, x in tree.items() if not str(k).startswith("x-")}
  # The name is that of the run's folder, so runs of two files do not collide.
  tree.setdefault("name", path.stem)
  for override in overrides:
    _apply(schema, tree, override)
  return _validated(schema, tree, str(path))


def parse(tree: dict[str, Any], source: str = "config") -> Config:
  """Validates a nested dictionary of settings; see `load`."""
  return _validated(Config, tree, source)


def _validated(schema: type[S], tree: dict[str, Any], source: str) -> S:
  try:
    return schema.model_validate(tree)
  except pydantic.ValidationError as error:
    lines = [_explain(schema, detail) for detail in error.errors()]
    lines.insert(0, f"{source} cannot be used:")
    raise ConfigError("\n".join(lines)) from None


class _Loader(yaml.SafeLoader):
  """Reads YAML with the numbers of YAML 1.2 and without duplicate keys.

  Plain YAML 1.1 reads `1e-5` as a string, `010` as 8 and `1:30` as 90, and
  drops the first of two equal keys silently.
  """

  yaml_implicit_resolvers: ClassVar = {
    first: [x for x in resolvers if x[0] != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
  }

  def construct_mapping(self, node, deep=False):
    seen = []
    for name, _ in node.value:
      # The tag is part of the key: 1 and '1' are two.
      key = (name.tag, name.value)
      if key in seen:
        raise yaml.constructor.ConstructorError(
          problem=f"{name.value!r} appears twice in one section; keep one",
          problem_mark=name.start_mark,
        )
      seen.append(key)
    return super().construct_mapping(node, deep)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
  return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)
_Loader.add_implicit_resolver(
  "tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
  "tag:yaml.org,2002:float",
  re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
  list("-+.0123456789"),
)


def _apply(schema: type[Section], tree: dict[str, Any], override: str) -> None:
  key, equals, text = override.partition("=")
  if not equals or not key:
    raise ConfigError(
      f"setting {override!r} is not of the form key=value, for example "
      "train.num_steps=10"
    )
  *parents, leaf = key.split(".")
  section = tree
  for name in parents:
    child = section.setdefault(name, {})
    if child is None:  # the file has `create: null`, this is `create.width=8`
      child = section[name] = {}
    if not isinstance(child, dict):
      raise ConfigError(f"setting {override!r}: {name} is not a section")
    section = child
  try:
    # Read as in a file, so that lists, null and nested sections can be given.
    value = yaml.load(text, Loader=_Loader)
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    # Whoever writes a template here gets the answer of its section.
    if "{{" not in text and "{%" not in text:
      raise ConfigError(
        f"setting {override!r} is not valid YAML; put a text in quotes: {error}"
      ) from error
    value = text
  if leaf == "kind" and parents:
    _switch_kind(functools.reduce(_type_at, parents, schema), section, override)
  section[leaf] = value


def _switch_kind(annotation, section: dict[str, Any], override: str) -> None:
  """Drops the settings of a section that only its kind so far has.

  Args:
    annotation: the type of the section.
    section: as the file has it.
    override: the setting that chooses another kind.
  """
  kinds = {
    name: set(model.model_fields)
    for name, model in _kinds_of(annotation).items()
  }
  new = kinds.get(override.partition("=")[2])
  if new is None:
    return  # refused later, with what is known
  # A key that no kind has is a mistake, which must still be found.
  dropped = sorted(set.union(*kinds.values()).difference(new) & set(section))
  for name in dropped:
    del section[name]
  if dropped:
    warnings.warn(
      f"{override} drops what only other kinds have: {', '.join(dropped)}",
      stacklevel=2,
    )


def _explain(schema: type[Section], detail) -> str:
  path = [str(part) for part in detail["loc"]]
  if detail["type"] == "extra_forbidden":
    others = _other_kinds(schema, path)
    if others:
      section = _dotted(schema, path[:-1])
      return (
        f"  {_dotted(schema, path)}: a setting of kind={others[0]}, not of "
        f"kind={path[-2]}; drop it, or replace the whole section with "
        f"'{section}={{kind: {path[-2]}}}'"
      )
    known = _known_keys(schema, path[:-1])
    near = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {known}"
    return f"  {_dotted(schema, path)}: unknown key{hint}"
  if detail["type"] == "union_tag_invalid":
    return _explain_kind(schema, path, detail["ctx"]["tag"])
  message = detail["msg"].removeprefix("Value error, ")
  given = detail["input"]
  # The value of a whole section would bury the message.
  is_section = isinstance(given, dict | pydantic.BaseModel)
  value = "" if is_section else f", got {given!r:.200}"
  where = f"{_dotted(schema, path)}: " if path else ""
  return f"  {where}{message}{value}"


def _explain_kind(schema: type[Section], path: list[str], kind: str) -> str:
  members = _kinds_of(functools.reduce(_type_at, path, schema))
  known = [name for name in members if name != "own"]
  near = difflib.get_close_matches(kind, known, n=1)
  hint = f"did you mean {near[0]}?" if near else f"known: {known}"
  if "own" in members:
    hint += ". Write one of your own as module:function"
  return f"  {_dotted(schema, path)}.kind: no kind {kind!r}; {hint}"


def _dotted(schema: type[Section], path: list[str]) -> str:
  """Returns a dotted path without the kinds that a union puts into it."""
  kept, annotation = [], schema
  for part in path:
    if part not in _kinds_of(annotation):
      kept.append(part)
    annotation = _type_at(annotation, part)
  return ".".join(kept)


def _known_keys(schema: type[Section], path: list[str]) -> list[str]:
  annotation = functools.reduce(_type_at, path, schema)
  for member in (annotation, *typing.get_args(annotation)):
    if isinstance(member, type) and issubclass(member, pydantic.BaseModel):
      return sorted(member.model_fields)
  return []


def _other_kinds(schema: type[Section], path: list[str]) -> list[str]:
  """Returns the other kinds of the same union that have the key."""
  members = _kinds_of(functools.reduce(_type_at, path[:-2], schema))
  if len(path) < 2 or path[-2] not in members:
    return []
  return [
    kind for kind, model in members.items() if path[-1] in model.model_fields
  ]


def _type_at(annotation, part: str) -> Any:
  """Returns the type behind a key of a section or dictionary, or a kind."""
  members = _kinds_of(annotation)
  if part in members:
    return members[part]
  if typing.get_origin(annotation) is dict:
    return typing.get_args(annotation)[1]
  fields = getattr(annotation, "model_fields", {})
  return fields[part].annotation if part in fields else None


def _kinds_of(annotation) -> dict[str, type]:
  """Returns the models of a union by their `kind`."""
  members = {}
  for member in typing.get_args(annotation):
    fields = getattr(member, "model_fields", {})
    if "kind" in fields:
      members[fields["kind"].default] = member
  return members
