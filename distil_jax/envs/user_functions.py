"""Finds environments and tools by the name that a config gives them."""

import difflib
import importlib
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pydantic

from distil_jax.config.base import Section

S = TypeVar("S", bound=Section)


def read_section(
  what: str,
  kind: str,
  sections: Mapping[str, type[S]],
  settings: Mapping[str, Any],
) -> S:
  """Validates settings by the config section of their kind.

  Args:
    what: `environment` or `tool`, for messages.
    kind: A key of `sections`.
    sections: Config sections by their kind.
    settings: Values of the section's fields.

  Raises:
    ValueError: The kind or a setting is unknown, or a value does not fit.
  """
  if kind not in sections:
    raise ValueError(f"unknown {what} {kind!r}{_nearest(kind, sections)}")
  section = sections[kind]
  fields = {k: v for k, v in section.model_fields.items() if k != "kind"}
  _refuse_unknown(what, kind, settings, fields)
  try:
    return section(**settings)
  except pydantic.ValidationError as error:
    raise ValueError(
      "\n".join(_explain(f"{what} {kind}", x) for x in error.errors())
    ) from None


def call_function(what: str, name: str, settings: Mapping[str, Any]) -> Any:
  """Imports a function of the user's own and calls it.

  Args:
    what: `environment` or `tool`, for messages.
    name: `module:function`; the module may lie in the current directory.
    settings: Keyword arguments of the function.

  Raises:
    ValueError: There is no such function, it has no such parameter, or a
      parameter without a default is missing.
  """
  function = _import_function(what, name)
  parameters = inspect.signature(function).parameters
  takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  if not takes_all:
    _refuse_unknown(what, name, settings, parameters)
  for key, parameter in parameters.items():
    is_needed = parameter.default is parameter.empty and parameter.kind in (
      parameter.POSITIONAL_OR_KEYWORD,
      parameter.KEYWORD_ONLY,
    )
    if is_needed and key not in settings:
      raise ValueError(f"{what} {name} needs a setting {key!r}")
  return function(**settings)


def _refuse_unknown(
  what: str, kind: str, settings: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
  for name in settings:
    if name not in known:
      raise ValueError(
        f"{what} {kind} has no setting {name!r}{_nearest(name, known)}"
      )


def _explain(where: str, detail: Any) -> str:
  """Returns one line about a value that a section refuses."""
  message = detail["msg"].removeprefix("Value error, ")
  path = ".".join(str(part) for part in detail["loc"])
  if not path or detail["type"] == "missing":
    return f"{where}: {path}{': ' if path else ''}{message}"
  return f"{where}: {path}={detail['input']!r}: {message}"


def _import_function(what: str, name: str) -> Callable[..., Any]:
  """Imports `module:function`; raises ValueError if there is none."""
  module_name, _, attribute = name.partition(":")
  here = str(pathlib.Path.cwd())
  # An installed command, unlike `python -m`, does not import from the current
  # directory by itself.
  added = [] if here in sys.path or "" in sys.path else [here]
  sys.path[:0] = added
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    # An import that fails inside the user's module is the user's to see.
    if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
      raise
    raise ValueError(
      f"{what} {name}: there is no module {error.name!r} here or among "
      "what is installed"
    ) from None
  finally:
    # Later imports must not find the user's files instead of packages.
    del sys.path[: len(added)]
  functions = {n: v for n, v in vars(module).items() if callable(v)}
  if attribute not in functions:
    raise ValueError(
      f"{what} {name}: module {module_name} has no function {attribute!r}"
      f"{_nearest(attribute, functions)}"
    )
  return functions[attribute]


def _nearest(name: str, known: Mapping[str, Any]) -> str:
  near = difflib.get_close_matches(name, known, n=1)
  return f"; did you mean {near[0]!r}?" if near else f"; known: {list(known)}"
