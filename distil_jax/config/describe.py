"""Describes the settings: types, bounds and defaults, as a reader of YAML."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pydantic
import yaml

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config

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
_SCHEMA_BOUNDS = {
  "gt": "exclusiveMinimum",
  "ge": "minimum",
  "lt": "exclusiveMaximum",
  "le": "maximum",
}
_YAML_NAMES = {
  bool: "true or false",
  str: "text",
  float: "number",
  int: "integer",
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """Describes one setting.

  Attributes:
    path: as on the command line, such as `optimizer.learning_rate`.
    kind: the kind of its section, such as `adamw`; None if there is one only.
    type: its type and bounds, in the words of YAML.
    default: as YAML.
    text: what it does.
  """

  path: str
  kind: str | None
  type: str
  default: str
  text: str


def settings() -> list[Setting]:
  """Returns every setting of a run, in the order of the schema."""
  found: list[Setting] = []
  for name, field in Config.model_fields.items():
    members = sections_of(field.annotation)
    for member in members:
      path = path_of(name, field.annotation)
      found += _settings_of(path, member, len(members) > 1)
  return found


def explain(key: str | None = None) -> str:
  """Returns a description of a setting or section, as text for a terminal.

  Args:
    key: such as `optimizer.learning_rate` or `optimizer`; None lists the
      sections.

  Raises:
    ConfigError: there is no such setting; it names the nearest.
  """
  if key is None:
    return _list_sections()
  key = key.partition("=")[0]  # an override is asked about as it stands
  section, _, name = key.partition(".")
  if name == "kind" and len(_kinds(section)) > 1:
    return _section_text(section)
  known = settings()
  exact = [setting for setting in known if setting.path == key]
  inside = [setting for setting in known if setting.path.startswith(f"{key}.")]
  if exact and not inside:
    return "\n\n".join(map(_whole, _merged(exact)))
  if inside:
    head = [_section_text(key)] if "." not in key else []
    lines = [_line(x) for x in _merged(inside) if x[0].path != f"{key}.kind"]
    return "\n".join([*head, *lines])
  paths = [setting.path for setting in known]
  # The last part alone is what a person remembers of a setting.
  near = [path for path in paths if path.endswith(f".{key}")]
  near = near or difflib.get_close_matches(key, paths, n=3, cutoff=0.5)
  near = list(dict.fromkeys(near))
  cure = f"did you mean {' or '.join(near)}?" if near else _known_sections()
  raise ConfigError(f"there is no setting {key!r}; {cure}")


def json_schema() -> dict[str, Any]:
  """Returns the JSON schema of a config file, for editors.

  It accepts what `load` does before it compares settings with each other: a
  section without its kind has the default one, and an environment or tool of
  one's own is named `module:function`.
  """
  schema = Config.model_json_schema()
  _loosen(schema)
  own = {
    "type": "object",
    "properties": {"kind": {"type": "string", "pattern": ":"}},
    "required": ["kind"],
  }
  definitions = schema["$defs"]
  for name in ("OwnEnvironmentConfig", "OwnToolConfig"):
    text = definitions[name].get("description", "")
    definitions[name] = own | {"description": text}
  for name in ("environment", "tools"):
    schema["properties"][name].pop("default", None)
  schema["patternProperties"] = {"^x-": {}}
  schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
  schema["title"] = "distil_jax config"
  return schema


def _loosen(node: Any) -> None:
  """Lets a section match any kind that allows it, in place.

  `oneOf` would refuse a section that names no kind, because several fit.
  Bounds that stand behind a check of our own get the names of JSON schema.
  """
  if isinstance(node, dict):
    if "oneOf" in node:
      node["anyOf"] = node.pop("oneOf")
    for name, known in _SCHEMA_BOUNDS.items():
      if isinstance(node.get(name), int | float):
        node[known] = node.pop(name)
    node.pop("discriminator", None)
    for value in node.values():
      _loosen(value)
  elif isinstance(node, list):
    for value in node:
      _loosen(value)


def _settings_of(
  path: str, section: type[pydantic.BaseModel], is_one_of_several: bool
) -> Iterator[Setting]:
  kind = section.model_fields.get("kind")
  name_of_kind = kind.default if is_one_of_several and kind else None
  for name, field in section.model_fields.items():
    yield Setting(
      path=f"{path}.{name}",
      kind=name_of_kind,
      type=type_text(field.annotation, field.metadata),
      default=default_text(field),
      text=text_of(field),
    )
    for nested in inner_sections(name, field):
      inner = path_of(f"{path}.{name}", field.annotation)
      for setting in _settings_of(inner, nested, False):
        yield dataclasses.replace(setting, kind=name_of_kind)


def inner_sections(
  name: str, field: pydantic.fields.FieldInfo
) -> list[type[pydantic.BaseModel]]:
  """Returns the section inside a setting that is described below it."""
  nested = sections_of(field.annotation)
  # What is described elsewhere is not repeated.
  is_told = f"see `{name}`" in (field.description or "")
  return nested if len(nested) == 1 and not is_told else []


def sections_of(annotation: Any) -> list[type[pydantic.BaseModel]]:
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
  return [section for part in arguments for section in sections_of(part)]


def path_of(path: str, annotation: Any) -> str:
  """Returns the path of a section, or of one of several by name."""
  is_by_name = typing.get_origin(annotation) is dict
  return f"{path}.NAME" if is_by_name else path


def is_optional(annotation: Any) -> bool:
  """Returns True if a setting may be null."""
  return type(None) in typing.get_args(annotation)


def text_of(field: pydantic.fields.FieldInfo) -> str:
  """Returns the description of a setting, in one line."""
  return " ".join((field.description or "").split())


def section_text(section: type[pydantic.BaseModel]) -> str:
  """Returns the description of a section, in one line; empty without one."""
  if section.__doc__ == pydantic.BaseModel.__doc__:
    return ""
  return " ".join((section.__doc__ or "").split())


def type_text(annotation: Any, metadata: Sequence[object]) -> str:
  """Returns a type as a reader of YAML knows it, with its bounds."""
  origin = typing.get_origin(annotation)
  arguments = typing.get_args(annotation)
  if origin is typing.Annotated:
    return type_text(arguments[0], [*_flat(arguments[1:]), *metadata])
  if annotation is type(None):
    return "null"
  nested = sections_of(annotation)
  if nested and origin is tuple:
    return "list of sections"
  if nested and origin is dict:
    return "sections by name"
  if nested:
    return f"section{' or null' if is_optional(annotation) else ''}"
  if origin in (typing.Union, types.UnionType):
    return " or ".join(type_text(part, metadata) for part in arguments)
  if origin is typing.Literal:
    return ", ".join(f"`{value}`" for value in arguments)
  if origin is tuple:
    if arguments[-1] is Ellipsis:
      return f"list of {type_text(arguments[0], [])}"
    return "[" + ", ".join(type_text(part, []) for part in arguments) + "]"
  if origin is dict:
    return "mapping"
  bounds = [text for item in _flat(metadata) for text in _bounds(item)]
  name = _YAML_NAMES.get(annotation, annotation)
  return f"{name} {', '.join(bounds)}".strip()


def default_text(field: pydantic.fields.FieldInfo) -> str:
  """Returns the default of a setting as YAML, in the quotes of Markdown."""
  value = field.default
  if field.is_required():
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


def _flat(metadata: Iterable[object]) -> list[object]:
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


def _merged(found: Sequence[Setting]) -> list[tuple[Setting, list[str]]]:
  """Returns settings that are alike in several kinds once, with those kinds.

  The kinds are left out if all have the setting.
  """
  kinds: dict[Setting, list[str]] = {}
  for setting in found:
    of_kind = kinds.setdefault(dataclasses.replace(setting, kind=None), [])
    if setting.kind is not None:
      of_kind.append(setting.kind)
  num_kinds = len(_kinds(found[0].path.partition(".")[0]))
  return [(x, [] if len(k) == num_kinds else k) for x, k in kinds.items()]


def _kinds(section: str) -> list[str]:
  """Returns the kinds of a section; empty if it has none."""
  if section not in Config.model_fields:
    return []
  members = sections_of(Config.model_fields[section].annotation)
  fields = [member.model_fields.get("kind") for member in members]
  return [field.default for field in fields if field is not None]


def _whole(found: tuple[Setting, list[str]]) -> str:
  setting, kinds = found
  lines = [setting.path, f"  {_plain(setting.text)}"]
  lines.append(f"  type:    {_plain(setting.type)}")
  lines.append(f"  default: {_plain(setting.default)}")
  if kinds:
    section = setting.path.partition(".")[0]
    lines.append(f"  with:    {section}.kind={' or '.join(kinds)}")
  return "\n".join(lines)


def _line(found: tuple[Setting, list[str]]) -> str:
  setting, kinds = found
  of_kinds = f" [{', '.join(kinds)}]" if kinds else ""
  return (
    f"  {setting.path} = {_plain(setting.default)}  "
    f"({_plain(setting.type)}){of_kinds}"
  )


def _plain(text: str) -> str:
  return text.replace("`", "")


def _section_text(name: str) -> str:
  members = sections_of(Config.model_fields[name].annotation)
  if len(members) == 1:
    return f"{name}: {_plain(section_text(members[0]))}"
  lines = [f"{name}, by its kind:"]
  for member in members:
    kind = member.model_fields["kind"].default
    lines.append(f"  {kind}: {_plain(section_text(member))}")
  return "\n".join(lines)


def _list_sections() -> str:
  lines = ["distil-jax config --explain SECTION or SECTION.SETTING:"]
  for name, field in Config.model_fields.items():
    members = sections_of(field.annotation)
    if members:
      first = section_text(members[0]).partition(". ")[0].rstrip(".:")
      if len(members) > 1:
        first = f"one of {', '.join(_kinds(name))}"
      lines.append(f"  {name:12} {_plain(first)}")
  return "\n".join(lines)


def _known_sections() -> str:
  names = [
    n for n, f in Config.model_fields.items() if sections_of(f.annotation)
  ]
  return f"the sections are {', '.join(names)}"
