"""Config sections of the teacher and its guard."""

import difflib
from typing import Annotated, Any, Literal

import pydantic

from distil_jax.config.base import (
  Above,
  DType,
  Fraction,
  NonNegative,
  PathText,
  Positive,
  Section,
  Share,
)

TEMPLATE_FORMS = ("block", "turn", "system", "critique")
_TEMPLATE_ENDINGS = (".jinja", ".jinja2", ".j2")


class GuardConfig(Section):
  """Watches whether a moving teacher can still read the feedback."""

  every: Positive = 1
  """Steps between looks at the teacher."""
  margin: Share = 0.05
  """Largest drop of its accuracy below that of the start."""
  action: Literal["freeze", "roll_back"] = "roll_back"
  """Until it recovers: stay, or go back to the initial weights at the rate of
  the moving average (which keeps one more copy of the weights)."""
  num_problems: Positive = 32
  """Failures of a step on which the teacher is asked for one answer each."""


class TeacherModelConfig(Section):
  """Another model as the teacher: any family and size, the same tokenizer.

  Its weights are those of its directory and never change. They are sharded as
  the student's and are no part of a checkpoint.
  """

  directory: PathText
  """A folder, or a model of the Hub, as `model.directory`."""
  revision: str | None = None
  """Branch, tag or commit of a model of the Hub; null is `main`, which may
  change."""
  param_dtype: DType = "float32"
  """Type in which its parameters are kept."""
  compute_dtype: DType = "float32"
  """Type of its activations."""
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
  """As `model.attention`."""


class TeacherServerConfig(Section):
  """A model behind a server that speaks OpenAI's API, as the teacher.

  It is asked between sampling and the update, with `teacher.access` `top_k` or
  `samples`.
  """

  url: str
  """Up to the version, as `http://127.0.0.1:8000/v1`."""
  model: Annotated[str, pydantic.Field(min_length=1)]
  """The name under which the server has it."""
  api_key_variable: str | None = None
  """Environment variable with the key; null: the server asks for none."""
  protocol: Literal["prompt_logprobs", "echo", "next_token"] | None = None
  """`prompt_logprobs` (vLLM, distil-jax serve) and `echo` ask once a sample,
  `next_token` once for each token; null: the first with `access=top_k`, the
  last with `samples`."""
  sends: Literal["ids", "text"] = "ids"
  """How the prompt travels. Text that does not come back as the same tokens
  leaves its sample without signal."""
  max_states: Positive | None = None
  """With `next_token`: tokens of a sample at which the teacher is asked, drawn
  at random and weighted so that the cost is right on average; null: all."""
  extra: dict[str, Any] = pydantic.Field(default={})
  """Fields added to each request; null takes one out."""
  timeout: Above = 120.0
  """Seconds until a request is given up."""
  max_retries: NonNegative = 4
  """Further attempts, each after a longer pause or what `Retry-After` says."""
  max_concurrency: Positive = 8
  """Requests under way at once, of each process."""
  max_failures: Positive = 4
  """Requests in a row that fail before the rest of a step is not asked for."""
  max_lost_steps: Positive = 3
  """Steps in a row without any answer before the run saves and stops."""

  @pydantic.field_validator("url")
  @classmethod
  def _url(cls, value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme not in ("http", "https") or not rest or "@" in rest:
      raise ValueError(
        "must begin with http:// or https:// and hold no key, which "
        "api_key_variable names"
      )
    return value.rstrip("/")


Name = Annotated[str, pydantic.Field(pattern=r"^[\w.-]+$")]


class TeacherConfig(Section):
  """Whose weights the teacher has and what stands in its prompt."""

  model: TeacherModelConfig | None = None
  """null: the teacher is the student's own network."""
  server: TeacherServerConfig | None = None
  """null: the teacher runs within the training step."""
  models: dict[Name, TeacherModelConfig | None] = pydantic.Field(default={})
  """Several teachers by name, each described as `model`, of which a problem has
  one; null in place of a model: the student's own network, as `parameters`
  says. Empty: one teacher for all problems."""
  routing_key: Annotated[str, pydantic.Field(min_length=1)] = "data_source"
  """With `models`: the field of a row that names its teacher; a point leads
  into a nested field."""
  default_model: str | None = None
  """With `models`: the teacher of problems that name none; null: each must."""
  parameters: Literal["ema", "frozen", "current", "trust_region"] = "frozen"
  """Moving average, initial weights, the student's own, or logits between the
  last two. SDPO and DistIL as published: a moving average."""
  ema_rate: Fraction = 0.01
  """Share of the way that a moving average follows the student in a step."""
  trust_region_rate: Share = 0.05
  """Share of the student's logits in a trust region's."""
  access: Literal["probabilities", "samples", "top_k"] = "probabilities"
  """Access to the teacher: its distribution, or a list for each token."""
  num_samples: Positive = 1
  """Samples in such a list."""
  top_k: Positive = 20
  """Most probable tokens in such a list."""
  guard: GuardConfig | None = None
  """null: no guard."""
  solution: Literal["sibling", "reference", "sibling_or_reference", "none"] = (
    "sibling"
  )
  """Which solution stands in the prompt."""
  feedback: Literal["when_no_solution", "always", "never"] = "when_no_solution"
  """When the environment's feedback stands in the prompt."""
  template: str = "block"
  """Form of the prompt: `block` (solution and feedback after the question),
  `turn` (the solution as an earlier answer, then the question again), `system`
  (both in the system's message), `critique` (the attempt as an earlier answer
  that the user criticises), or the path of a Jinja template."""
  success_threshold: Fraction = 1.0
  """A reward from here on is a success."""
  learn_from: Literal["all", "failures"] = "all"
  """Completions that the teacher judges; `failures`: those below
  `success_threshold`, so that successes are left to rewards."""
  first_tokens: Positive | None = None
  """Tokens of a completion that the teacher judges, from its first; null: all.
  The others are left to rewards."""
  skip: tuple[Literal["thoughts", "special_tokens"], ...] = ()
  """Tokens that the teacher does not judge: those between `<think>` and
  `</think>`, and end tokens and other special ones."""
  max_prompt_length: Positive = 512
  """Tokens of the teacher's prompt, at most."""
  share_prefix: bool = True
  """Read what the prompts of a group begin with only once, where that saves
  tokens. It changes rounding alone."""

  @pydantic.field_validator("template")
  @classmethod
  def _template(cls, value: str) -> str:
    if value in TEMPLATE_FORMS or value.endswith(_TEMPLATE_ENDINGS):
      return value
    if "{{" in value or "{%" in value:
      raise ValueError(
        "a template of your own is a file: write it into one whose name ends "
        f"in {_TEMPLATE_ENDINGS[0]}, and give the path"
      )
    near = difflib.get_close_matches(value, TEMPLATE_FORMS, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise ValueError(
      f"no form {value!r}; {guess}it is one of {', '.join(TEMPLATE_FORMS)}, or "
      "the path of a Jinja template that ends in "
      f"{' or '.join(_TEMPLATE_ENDINGS)}"
    )

  @pydantic.model_validator(mode="after")
  def _rates(self):
    fields = type(self).model_fields
    for name, of in (
      ("ema_rate", "ema"),
      ("trust_region_rate", "trust_region"),
    ):
      value = getattr(self, name)
      if self.parameters != of and value != fields[name].default:
        raise ValueError(
          f"{name}={value} is of parameters={of}, but "
          f"parameters={self.parameters}; set parameters={of}, or drop {name}"
        )
    return self

  @property
  def is_other_model(self) -> bool:
    """Returns True if no teacher has the student's own network."""
    if self.models:
      return None not in self.models.values()
    return self.model is not None or self.server is not None

  @property
  def other_models(self) -> dict[str, TeacherModelConfig]:
    """Returns the teachers that are other models, by their keys' paths."""
    if self.model is not None:
      return {"teacher.model": self.model}
    return {
      f"teacher.models.{name}": section
      for name, section in self.models.items()
      if section is not None
    }

  @property
  def list_size(self) -> int:
    """Returns the tokens of a list; 0 if the teacher gives its distribution."""
    sizes = {"samples": self.num_samples, "top_k": self.top_k}
    return sizes.get(self.access, 0)

  @pydantic.model_validator(mode="after")
  def _model(self):
    if self.model is not None and self.server is not None:
      raise ValueError(
        f"model.directory={self.model.directory} and server.url="
        f"{self.server.url} are two teachers; set one of model and server to "
        "null"
      )
    if self.model is not None:
      other, key = f"model.directory={self.model.directory}", "model"
    elif self.server is not None:
      other, key = f"server.model={self.server.model}", "server"
    else:
      return self
    if self.parameters != "frozen":
      raise ValueError(
        f"parameters={self.parameters} makes the teacher from the student's "
        f"weights, but {other} has weights of its own, which stay; set "
        f"parameters=frozen, or {key}=null"
      )
    if self.guard:
      raise ValueError(
        f"guard.action={self.guard.action} watches a moving average of the "
        f"student, but {other} does not move; set guard=null, or {key}=null"
      )
    return self

  def check_name(self, setting: str, name: str) -> None:
    """Checks that one of several teachers has a name.

    Args:
      setting: path of the setting that names it, for messages.
      name: its value.
    """
    if not self.models:
      raise ValueError(
        f"{setting}={name} chooses one of several teachers, but teacher.models "
        f"is empty; name them there, or drop {setting}"
      )
    if name not in self.models:
      near = difflib.get_close_matches(name, self.models, n=1)
      guess = f"did you mean {near[0]}? " if near else ""
      raise ValueError(
        f"{setting}={name} is none of teacher.models; {guess}they are "
        f"{', '.join(self.models)}"
      )

  @pydantic.model_validator(mode="after")
  def _models(self):
    if not self.models:
      fields = type(self).model_fields
      for name in ("routing_key", "default_model"):
        value = getattr(self, name)
        if value != fields[name].default:
          raise ValueError(
            f"{name}={value} chooses one of several teachers, but models is "
            f"empty; name them in models, or drop {name}"
          )
      return self
    names = ", ".join(self.models)
    for key in ("model", "server"):
      if getattr(self, key) is not None:
        raise ValueError(
          f"{key} is one teacher for all problems, and models={names} are "
          f"several; set {key}=null"
          + (" and give each a model" if key == "server" else ", or models={}")
        )
    if self.default_model is not None:
      self.check_name("default_model", self.default_model)
    if self.guard:
      raise ValueError(
        f"guard.action={self.guard.action} watches one teacher, and "
        f"models={names} are several; set guard=null"
      )
    if self.is_other_model and self.parameters != "frozen":
      raise ValueError(
        f"parameters={self.parameters} makes a teacher from the student's "
        f"weights, but each of models={names} has weights of its own; set "
        "parameters=frozen, or null in place of one"
      )
    return self

  @pydantic.model_validator(mode="after")
  def _server(self):
    server = self.server
    if server is None:
      return self
    if self.access == "probabilities":
      raise ValueError(
        f"access=probabilities needs the whole distribution, which server.url="
        f"{server.url} does not send; set access=top_k, or samples"
      )
    asks_whole = server.protocol in ("prompt_logprobs", "echo")
    if self.access == "samples" and asks_whole:
      raise ValueError(
        f"server.protocol={server.protocol} lists probabilities, but access="
        "samples draws tokens; set access=top_k, or server.protocol=next_token"
      )
    asks_whole |= self.access == "top_k" and server.protocol is None
    if server.max_states is not None and asks_whole:
      raise ValueError(
        f"server.max_states={server.max_states} saves requests for single "
        "tokens, but here one request has all of a sample; set "
        "server.max_states=null, or server.protocol=next_token"
      )
    return self

  @pydantic.model_validator(mode="after")
  def _guard(self):
    if self.guard and self.parameters != "ema":
      raise ValueError(
        f"guard watches a moving average, but parameters={self.parameters}; "
        "use guard=null, or parameters=ema"
      )
    return self
