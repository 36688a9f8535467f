"""Config sections of tools, which the student may use between its turns."""

from typing import Annotated, Any, Literal

import pydantic

from distil_jax.config.base import Above, Positive, Section


class ToolsConfig(Section):
  """Holds the settings of every tool.

  All turns and outputs of an episode fit `rollout.max_completion_length`.
  """

  max_turns: Annotated[int, pydantic.Field(ge=2)] = 4
  """Turns of the student in one episode."""
  max_output_tokens: Annotated[int, pydantic.Field(ge=16)] = 256
  """Tokens of one output; a longer one is cut and marked."""
  num_workers: Positive | None = None
  """Tool calls that run at once; null takes one for each core."""
  call_seconds: Above = 60.0
  """Time limit of one call in seconds, after which the tool has failed. It
  must exceed the tool's own limits: it is for a tool that hangs."""


class PythonToolConfig(ToolsConfig):
  """Runs the last ```python block of a turn in the sandbox.

  The blocks of earlier turns run again first, without their output.
  """

  kind: Literal["python"] = "python"
  """Runs programs in the sandbox."""
  seconds: Above = 5.0
  """CPU time in seconds of a block and those before it."""
  memory_gib: Above = 1.0
  """Memory of the program in GiB."""
  max_characters: Annotated[int, pydantic.Field(ge=100)] = 2000
  """Characters of one output; its beginning and end are kept."""


class OwnToolConfig(ToolsConfig):
  """Names a tool that is not in this package.

  Written as `{kind: my_package.my_module:make, …}`, with the settings of the
  function beside those of every tool.
  """

  kind: Literal["own"] = "own"
  """A tool of yours."""
  function: Annotated[
    str, pydantic.Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
  ]
  """`module:function`; the function returns the tool."""
  settings: dict[str, Any] = pydantic.Field(default={})
  """Keyword arguments of the function."""


ToolConfig = PythonToolConfig | OwnToolConfig


def with_kind(section: dict[str, Any]) -> dict[str, Any]:
  """Returns a section as the schema has it: with a kind, own tools named."""
  settings = {"kind": "python", **section}
  if ":" not in str(settings["kind"]):
    return settings
  common = {
    k: settings.pop(k) for k in ToolsConfig.model_fields if k in settings
  }
  function = settings.pop("kind")
  return {"kind": "own", "function": function, "settings": settings, **common}
