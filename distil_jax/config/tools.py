"""What the student may use between its turns."""

from typing import Annotated, Any, Literal

import pydantic

from distil_jax.config.base import Above, Positive, Section


class ToolsConfig(Section):
  """What holds for every tool. An episode fits `max_completion_length`."""

  max_turns: Annotated[int, pydantic.Field(ge=2)] = 4
  """Of the student, in one episode."""
  max_output_tokens: Annotated[int, pydantic.Field(ge=16)] = 256
  """Of one output; what is longer is cut, with a sign."""
  num_workers: Positive | None = None
  """Outputs that are found at once; null: one for each core."""
  call_seconds: Above = 60.0
  """For one output, after which the tool has failed: above the deadlines that
  the tool has itself, for one that hangs."""


class PythonToolConfig(ToolsConfig):
  """Runs the last ```python block of a turn in the sandbox.

  The blocks of the turns before run again first, without their output.
  """

  kind: Literal["python"] = "python"
  seconds: Above = 5.0
  """Of CPU, for a block and those before it."""
  memory_gib: Above = 1.0
  """Of the program."""
  max_characters: Annotated[int, pydantic.Field(ge=100)] = 2000
  """Of one output; beginning and end stay."""


class OwnToolConfig(ToolsConfig):
  """One that is not in this package.

  Written as `{kind: my_package.my_module:make, …}`, with the settings of the
  function beside those of every tool.
  """

  kind: Literal["own"] = "own"
  function: Annotated[
    str, pydantic.Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
  ]
  """`module:function`; what it returns is the tool."""
  settings: dict[str, Any] = pydantic.Field(default={})
  """Its arguments."""


ToolConfig = PythonToolConfig | OwnToolConfig


def with_kind(section: dict[str, Any]) -> dict[str, Any]:
  """A section as the schema has it: with a kind, and one's own tool named."""
  settings = {"kind": "python", **section}
  if ":" not in str(settings["kind"]):
    return settings
  common = {
    k: settings.pop(k) for k in ToolsConfig.model_fields if k in settings
  }
  function = settings.pop("kind")
  return {"kind": "own", "function": function, "settings": settings, **common}
