"""Things made by the name that a config gives them."""

import difflib
import importlib
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def make(
  what: str,
  kind: str,
  known: Mapping[str, Callable[..., Any]],
  settings: Mapping[str, Any],
) -> Any:
  """Calls what is known by a name, or is somebody's own.

  Args:
    what: is made, for messages.
    kind: a key of `known`, or `module:function`; the module may lie in the
      current directory.
    known: those of this package.
    settings: its arguments.

  Raises:
    ValueError: there is nothing of that name, it has no such setting, it lacks
      one, or a setting has a value that it cannot have.
  """
  if ":" in kind:
    function = _imported(what, kind)
  elif kind in known:
    function = known[kind]
  else:
    raise ValueError(f"unknown {what} {kind!r}{_nearest(kind, known)}")
  parameters = inspect.signature(function).parameters
  takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  for name in settings:
    if name not in parameters and not takes_all:
      raise ValueError(
        f"{what} {kind} has no setting {name!r}{_nearest(name, parameters)}"
      )
  for name, parameter in parameters.items():
    is_needed = parameter.default is parameter.empty and parameter.kind in (
      parameter.POSITIONAL_OR_KEYWORD,
      parameter.KEYWORD_ONLY,
    )
    if is_needed and name not in settings:
      raise ValueError(f"{what} {kind} needs a setting {name!r}")
  return function(**settings)


def _imported(what: str, kind: str) -> Callable[..., Any]:
  """`module:function`; raises ValueError where there is none."""
  name, _, attribute = kind.partition(":")
  here = str(pathlib.Path.cwd())
  # An installed command does not look where it is called.
  added = [] if here in sys.path or "" in sys.path else [here]
  sys.path[:0] = added
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    # What the module itself lacks is another matter.
    if error.name is None or not f"{name}.".startswith(f"{error.name}."):
      raise
    raise ValueError(
      f"{what} {kind}: there is no module {error.name!r} here or among "
      "what is installed"
    ) from None
  finally:
    del sys.path[: len(added)]
  found = {n: v for n, v in vars(module).items() if callable(v)}
  if attribute not in found:
    raise ValueError(
      f"{what} {kind}: module {name} has no function {attribute!r}"
      f"{_nearest(attribute, found)}"
    )
  return found[attribute]


def _nearest(name: str, known: Mapping[str, Any]) -> str:
  near = difflib.get_close_matches(name, known, n=1)
  return f"; did you mean {near[0]!r}?" if near else f"; known: {list(known)}"
