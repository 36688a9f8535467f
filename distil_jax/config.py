"""The one schema of a run: frozen models, one per section.

A config is a YAML file plus dotted overrides (`optimizer.learning_rate=1e-4`).
Every check of a setting lives here, names the key's path and says what would
be right; an unknown key is an error with the nearest known name.
"""

import difflib
import pathlib
import re
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
import yaml

Positive = Annotated[int, pydantic.Field(gt=0, lt=2**31)]
NonNegative = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
Fraction = Annotated[float, pydantic.Field(gt=0, le=1)]
DType = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
  """A setting that cannot be used; the message names it and the cure."""


class Section(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(
    frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
  )


class CreateModel(Section):
  """A new, randomly initialised Qwen3 with a tokenizer trained on the data."""

  vocab_size: Annotated[int, pydantic.Field(ge=300)] = 512
  width: Positive = 64
  num_layers: Positive = 2
  num_heads: Positive = 4
  num_kv_heads: Positive = 2
  head_size: Annotated[int, pydantic.Field(gt=0, multiple_of=2)] = 16
  mlp_size: Positive = 192
  tie_embeddings: bool = True
  rope_theta: Annotated[float, pydantic.Field(gt=1)] = 10000.0
  max_positions: Positive = 4096
  seed: Seed = 0

  @pydantic.model_validator(mode="after")
  def _heads(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}"
      )
    return self


class Model(Section):
  """The policy: a Hugging Face directory of a Qwen3-architecture decoder.

  `directory` may be `embedded:calculator`, the tiny base model that ships with
  the package. With `create` the directory is made first if it is not there.
  """

  directory: str = "embedded:calculator"
  create: CreateModel | None = None
  param_dtype: DType = "float32"
  compute_dtype: DType = "float32"
  remat: Literal["none", "layer"] = "layer"
  chat_template_kwargs: dict[str, Any] = {"enable_thinking": False}

  @pydantic.model_validator(mode="after")
  def _place_to_create(self):
    if self.create and self.directory.startswith("embedded:"):
      raise ValueError(
        f"directory={self.directory} ships with the package, but create is "
        "set; give the new model a directory of its own"
      )
    return self


class Data(Section):
  """Problems: files, or `generated` where the environment makes its own.

  `fields` maps the project's field names to those of the file, for example
  `{prompt: question, solution: answer}`.
  """

  train: str = "generated"
  evaluation: str = "generated"
  fields: dict[str, str] = {}
  malformed_rows: Literal["error", "skip"] = "error"
  long_prompts: Literal["error", "drop"] = "error"
  num_train: Positive | None = None
  num_evaluation: Positive | None = None
  num_epochs: Positive | None = None
  seed: Seed = 0


class MultipleChoice(Section):
  """The letter in the last `<answer>…</answer>` against the row's answer."""

  kind: Literal["multiple_choice"] = "multiple_choice"
  feedback: bool = True
  reveal_answer: bool = False


class Calculator(Section):
  """Running arithmetic, step by step; feedback is an execution trace."""

  kind: Literal["calculator"] = "calculator"
  num_steps: tuple[Positive, Positive] = (3, 4)
  seed: Seed = 0
  slip_rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.25

  @pydantic.model_validator(mode="after")
  def _range(self):
    fewest, most = self.num_steps
    if fewest > most:
      raise ValueError(
        f"num_steps=[{fewest}, {most}] must be [fewest, most]; swap them"
      )
    return self


Environment = Annotated[
  MultipleChoice | Calculator, pydantic.Field(discriminator="kind")
]


class Sampling(Section):
  temperature: Annotated[float, pydantic.Field(ge=0)] = 1.0
  top_k: Positive | None = None
  top_p: Fraction | None = None

  @pydantic.field_validator("temperature")
  @classmethod
  def _temperature(cls, value: float) -> float:
    # Logits divided by less overflow, and the sampler would draw token 0.
    if 0 < value < 1e-6:
      raise ValueError("must be 0 (the most probable token) or at least 1e-6")
    return value


class Rollout(Sampling):
  """How the student samples while it trains."""

  num_problems: Positive = 16
  group_size: Positive = 8
  max_prompt_length: Positive = 128
  max_completion_length: Positive = 128


class Teacher(Section):
  """Whose weights the teacher has and what stands in its prompt."""

  parameters: Literal["ema", "frozen", "current"] = "ema"
  ema_rate: Fraction = 0.01
  solution: Literal["sibling", "reference", "sibling_or_reference", "none"] = (
    "sibling"
  )
  feedback: Literal["when_no_solution", "always", "never"] = "when_no_solution"
  success_threshold: Fraction = 1.0
  max_prompt_length: Positive = 512


class Distil(Section):
  """Forward cross-entropy to the teacher, plus future credit."""

  kind: Literal["distil"] = "distil"
  cost: Literal["cross_entropy", "kl"] = "cross_entropy"
  future_weight: Annotated[float, pydantic.Field(ge=0)] = 1.0
  normalize: bool = True
  discount: Fraction = 1.0
  baseline: Literal["leave_one_out"] | None = None
  terminal_neutral: bool = False
  aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
  chunk_size: Positive | None = None


class SFT(Section):
  """Negative log-likelihood of demonstrations."""

  kind: Literal["sft"] = "sft"
  aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
  chunk_size: Positive | None = None


Objective = Annotated[Distil | SFT, pydantic.Field(discriminator="kind")]


class Optimizer(Section):
  """AdamW. `micro_batch_size` counts sequences; null takes all at once."""

  learning_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-5
  warmup_steps: NonNegative = 0
  schedule: Literal["constant", "cosine"] = "constant"
  beta1: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.9
  beta2: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.999
  epsilon: Annotated[float, pydantic.Field(gt=0)] = 1e-8
  weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.01
  max_gradient_norm: Annotated[float, pydantic.Field(gt=0)] | None = 1.0
  micro_batch_size: Positive | None = None


class Mesh(Section):
  """Devices along each axis; one axis may be -1, which takes the rest."""

  data: int = 1
  fsdp: int = -1
  tensor: int = 1

  @pydantic.model_validator(mode="after")
  def _sizes(self):
    sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
    for name, size in sizes.items():
      if size < 1 and size != -1:
        raise ValueError(f"{name}={size} must be positive, or -1 for the rest")
    if sum(size == -1 for size in sizes.values()) > 1:
      raise ValueError(f"only one axis may be -1, got {sizes}")
    return self


class Train(Section):
  num_steps: Positive = 100
  seed: Seed = 0
  run_directory: str | None = None  # null: runs/<name of the config file>


class Evaluation(Sampling):
  """Held-out problems: avg@num_samples and pass@k for each k."""

  every: NonNegative = 0  # steps; 0 evaluates only before and after
  num_samples: Positive = 4
  pass_at: tuple[Positive, ...] = (1, 4)
  num_problems: Positive = 64  # in one batch of rollouts
  max_completion_length: Positive | None = None  # null: the rollout's

  @pydantic.model_validator(mode="after")
  def _pass_at(self):
    if not self.pass_at:
      raise ValueError("pass_at needs at least one k")
    for k in self.pass_at:
      if k > self.num_samples:
        raise ValueError(
          f"pass_at has k={k}, but num_samples={self.num_samples}: "
          "pass@k needs at least k samples"
        )
    return self


class Checkpoint(Section):
  every: Positive = 50  # steps; the last step is always saved
  keep: Positive = 2
  resume: bool = True


class Logging(Section):
  every: Positive = 1  # steps between lines in metrics.jsonl
  rollouts_every: NonNegative = 10  # steps between rollout samples; 0: never
  num_rollouts: Positive = 4
  tensorboard: bool = True


class Config(Section):
  """Everything that decides what a run does."""

  name: str = "run"
  model: Model = Model()
  data: Data = Data()
  environment: Environment = Calculator()
  rollout: Rollout = Rollout()
  teacher: Teacher = Teacher()
  objective: Objective = Distil()
  optimizer: Optimizer = Optimizer()
  mesh: Mesh = Mesh()
  train: Train = Train()
  evaluation: Evaluation = Evaluation()
  checkpoint: Checkpoint = Checkpoint()
  logging: Logging = Logging()

  @property
  def run_directory(self) -> pathlib.Path:
    return pathlib.Path(self.train.run_directory or f"runs/{self.name}")

  @property
  def num_sequences(self) -> int:
    """Sequences in one training step."""
    return self.rollout.num_problems * self.rollout.group_size

  @pydantic.model_validator(mode="before")
  @classmethod
  def _kinds(cls, tree: Any) -> Any:
    """Where no kind is said it is the default's, as for every setting."""
    if not isinstance(tree, dict):
      return tree
    filled = dict(tree)
    for name in ("environment", "objective"):
      if isinstance(filled.get(name), dict):
        kind = cls.model_fields[name].default.kind
        filled[name] = {"kind": kind, **filled[name]}
    return filled

  @pydantic.model_validator(mode="after")
  def _together(self):
    micro = self.optimizer.micro_batch_size
    if micro and self.num_sequences % micro:
      raise ValueError(
        f"optimizer.micro_batch_size={micro} must divide the "
        f"{self.num_sequences} sequences of a step (rollout.num_problems="
        f"{self.rollout.num_problems} x rollout.group_size="
        f"{self.rollout.group_size})"
      )
    if (
      getattr(self.objective, "baseline", None) == "leave_one_out"
      and self.rollout.group_size < 2
    ):
      raise ValueError(
        "objective.baseline=leave_one_out needs rollout.group_size of at "
        "least 2, got 1; use baseline=null"
      )
    teacher = self.teacher
    # Nothing would ever stand in the teacher's prompt, and the run learn
    # nothing.
    is_silent = teacher.solution == "none" or (
      teacher.solution == "sibling" and self.rollout.group_size == 1
    )
    if (
      self.objective.kind == "distil"
      and teacher.feedback == "never"
      and is_silent
    ):
      raise ValueError(
        f"teacher.solution={teacher.solution} and teacher.feedback=never with "
        f"rollout.group_size={self.rollout.group_size} leave the teacher "
        "nothing to tell; let it have one of the two"
      )
    generates = self.environment.kind == "calculator"
    for key in ("train", "evaluation"):
      if getattr(self.data, key) == "generated" and not generates:
        raise ValueError(
          f"data.{key}=generated, but environment.kind="
          f"{self.environment.kind} makes no problems; give a file"
        )
    return self


def load(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> Config:
  """Reads a YAML config and applies `section.key=value` overrides.

  Raises:
    ConfigError: the file is missing or no mapping, a key is unknown, a value
      does not fit. All problems are listed, one a line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConfigError(f"no config file at {path}")
  try:
    tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise ConfigError(f"{path} is not valid YAML: {error}") from error
  if not isinstance(tree, dict):
    raise ConfigError(f"{path} must hold a mapping of sections")
  tree.setdefault("name", path.stem)
  for override in overrides:
    _apply(tree, override)
  return parse(tree, source=str(path))


def parse(tree: dict[str, Any], source: str = "config") -> Config:
  """Validates a nested dictionary of settings; see `load`."""
  try:
    return Config.model_validate(tree)
  except pydantic.ValidationError as error:
    lines = [_explain(detail) for detail in error.errors()]
    lines.insert(0, f"{source} cannot be used:")
    raise ConfigError("\n".join(lines)) from None


class _Loader(yaml.SafeLoader):
  """YAML 1.2 floats: plain YAML 1.1 reads `1e-5` as a string.

  A key that stands twice is an error: plain YAML drops the first in silence.
  """

  def construct_mapping(self, node, deep=False):
    seen = []
    for name, _ in node.value:
      key = (name.tag, name.value)
      if key in seen:
        raise yaml.constructor.ConstructorError(
          problem=f"{name.value!r} stands twice in one section; keep one",
          problem_mark=name.start_mark,
        )
      seen.append(key)
    return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
  "tag:yaml.org,2002:float",
  re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
  list("-+.0123456789"),
)


def _apply(tree: dict[str, Any], override: str) -> None:
  key, equals, text = override.partition("=")
  if not equals or not key:
    raise ConfigError(f"override {override!r} is not of the form key=value")
  *parents, leaf = key.split(".")
  for name in parents:
    child = tree.setdefault(name, {})
    if child is None:  # `create: null` in the file, `create.width=8` here
      child = tree[name] = {}
    if not isinstance(child, dict):
      raise ConfigError(f"override {override!r}: {name} is not a section")
    tree = child
  try:
    tree[leaf] = yaml.load(text, Loader=_Loader)
  except yaml.YAMLError as error:
    raise ConfigError(f"override {override!r}: {error}") from error


def _explain(detail) -> str:
  path = [str(part) for part in detail["loc"]]
  if detail["type"] == "extra_forbidden":
    known = _known_keys(path[:-1])
    near = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {known}"
    return f"  {_dotted(path)}: unknown key{hint}"
  message = detail["msg"].removeprefix("Value error, ")
  given = detail["input"]
  # A whole section would only bury the message.
  is_section = isinstance(given, dict | pydantic.BaseModel)
  value = "" if is_section else f", got {given!r}"
  where = f"{_dotted(path)}: " if path else ""
  return f"  {where}{message}{value}"


def _dotted(path: list[str]) -> str:
  """Drops the tag that a union by `kind` puts into the path."""
  kept, annotation = [], Config
  for part in path:
    members = _members(annotation)
    if part in members:
      annotation = members[part]
      continue
    kept.append(part)
    fields = getattr(annotation, "model_fields", {})
    annotation = fields[part].annotation if part in fields else None
  return ".".join(kept)


def _known_keys(path: list[str]) -> list[str]:
  annotation: Any = Config
  for part in path:
    members = _members(annotation)
    fields = getattr(annotation, "model_fields", {})
    if part in members:
      annotation = members[part]
    elif part in fields:
      annotation = fields[part].annotation
  for member in (annotation, *typing.get_args(annotation)):
    if isinstance(member, type) and issubclass(member, pydantic.BaseModel):
      return sorted(member.model_fields)
  return []


def _members(annotation) -> dict[str, type]:
  """The models of a union by their `kind`."""
  members = {}
  for member in typing.get_args(annotation):
    fields = getattr(member, "model_fields", {})
    if "kind" in fields:
      members[fields["kind"].default] = member
  return members
