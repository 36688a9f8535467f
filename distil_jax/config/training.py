"""The sections of a run, one per station; what is learned is apart."""

from typing import Annotated, Any, Literal

import pydantic

from distil_jax.config.base import (
  Above,
  DType,
  Fraction,
  NonNegative,
  Positive,
  Section,
  Seed,
  Weight,
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
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
  """Of whole sequences. `cudnn` is for CUDA GPUs, `splash` for TPUs, and `auto`
  takes them there, where head size and dtype suit them."""
  chat_template_kwargs: dict[str, Any] = pydantic.Field(
    default={"enable_thinking": False}
  )

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
  fields: dict[str, str] = pydantic.Field(default={})
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


class Math(Section):
  """The last `\\boxed{…}` against the row's answer."""

  kind: Literal["math"] = "math"
  feedback: bool = True
  reveal_answer: bool = False
  instruction: str = "Put the final answer in \\boxed{}."
  """Stands after each question; empty adds nothing."""
  symbolic: bool = True
  """Compare by algebra where texts differ; needs the extra `math`."""
  seconds: Above = 5.0
  """For one comparison."""


class Code(Section):
  """The program in the last ``` block against the row's tests."""

  kind: Literal["code"] = "code"
  feedback: bool = True
  reveal_hidden_tests: bool = False
  """Whether feedback may tell what is in tests that the row calls hidden."""
  instruction: str | None = None
  """Stands after each question; null: one that suits the row; empty adds
  nothing."""
  seconds: Above = 6.0
  """Of CPU, for one test."""
  total_seconds: Above = 40.0
  """Of the clock, for all of them; then no further one is begun."""
  memory_gib: Above = 1.0
  """Of a program."""


class ToolCalls(Section):
  """Calls of tools, `Action:` and `Action Input:`, against the row's."""

  kind: Literal["tool_calls"] = "tool_calls"
  feedback: bool = True
  reveal_answer: bool = False


class ReasoningGym(Section):
  """A task of reasoning_gym, which makes problems and scores answers."""

  kind: Literal["reasoning_gym"] = "reasoning_gym"
  task: Annotated[str, pydantic.Field(min_length=1)]
  """Its name there, such as `chain_sum`; `composite` mixes several."""
  settings: dict[str, Any] = pydantic.Field(default={})
  """Of the task, without its `seed` and `size`."""
  seed: Seed = 0
  """Of everything that is made."""
  feedback: bool = True
  reveal_answer: bool = False
  instruction: str = (
    "Put the final answer, and nothing else, between <answer> and </answer>."
  )
  """Stands after each question; empty adds nothing."""
  seconds: Above = 5.0
  """To score one answer."""


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


class OwnEnvironment(Section):
  """One that is not in this package.

  Written as `{kind: my_package.my_module:make, …}`, with the settings of the
  function beside it.
  """

  kind: Literal["own"] = "own"
  function: Annotated[
    str, pydantic.Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
  ]
  """`module:function`; what it returns is the environment."""
  settings: dict[str, Any] = pydantic.Field(default={})
  """Its arguments."""


_Judge = (
  MultipleChoice
  | Math
  | Code
  | ToolCalls
  | ReasoningGym
  | Calculator
  | OwnEnvironment
)


class Critique(Section):
  """How long what the policy is asked, and what it says, may be."""

  max_prompt_length: Positive = 1024
  """Where it is longer the middle of the completion is left out; all else
  stays."""
  max_length: Positive = 256


class SelfEvaluation(Section):
  """The policy criticises its own completions: that becomes the feedback.

  It is sampled from once more for each completion, as `rollout` says.
  """

  kind: Literal["self_evaluation"] = "self_evaluation"
  of: _Judge | None = pydantic.Field(default=None, discriminator="kind")
  """The environment that gives reward and status; null: the critique does,
  which a policy may learn to exploit."""
  rubric: str | None = None
  """What is asked, with places for `{problem}` and `{completion}`; what the
  environment says, `{feedback}`, and the reference `{answer}` are shown where
  they have a place. null: a general one."""
  only_failures: bool = True
  """Ask nothing about what is correct."""
  keep_feedback: bool = False
  """Leave what the environment says in front of the critique."""
  max_feedback_length: Positive = 4000
  """Characters of a critique that are kept."""
  critique: Critique = Critique()


Environment = Annotated[
  _Judge | SelfEvaluation, pydantic.Field(discriminator="kind")
]


class Judging(Section):
  """How verdicts are found, while others are still sampled."""

  num_workers: Positive | None = None
  """Threads that judge at once; null: one for each core."""
  seconds: Above = 60.0
  """For one verdict, after which it is `timeout`: above the deadlines that the
  environment has itself, for a judge that hangs."""


class Sandbox(Section):
  """Where programs run that a model has written."""

  kind: Literal["bubblewrap", "weak", "remote"] = "bubblewrap"
  """`bubblewrap` keeps them apart from this machine; `remote` sends them to
  another, where `distil-jax sandbox` runs. `weak` only limits what they take:
  they can read what you can."""
  num_processes: Positive | None = None
  """Programs at once; null: as many as there are cores."""
  python: str | None = None
  """The interpreter they run in; null: this one, without its packages."""
  packages: str | None = None
  """A folder of packages that they may import, made by `pip install
  --target`."""
  url: str | None = None
  """Of a remote one, such as http://host:8765."""

  @pydantic.model_validator(mode="after")
  def _url(self):
    if (self.kind == "remote") != (self.url is not None):
      raise ValueError(
        f"kind={self.kind} with url={self.url}: a remote sandbox has a url, "
        "and no other has"
      )
    return self


class Mesh(Section):
  """Devices along each axis; one axis may be -1, which takes the rest."""

  data: int = 1
  """Copies of the parameters; each has its part of a batch."""
  fsdp: int = -1
  """Cuts parameters, optimiser and teacher, and batches too."""
  context: int = 1
  """Cuts the same, and sequences along time where they are scored and learned
  from, for those too long for one device. Sampling takes it for more of
  `fsdp`."""
  tensor: int = 1
  """Cuts heads, MLP and vocabulary."""

  @pydantic.model_validator(mode="after")
  def _sizes(self):
    sizes = self.model_dump()
    for name, size in sizes.items():
      if size < 1 and size != -1:
        raise ValueError(f"{name}={size} must be positive, or -1 for the rest")
    if sum(size == -1 for size in sizes.values()) > 1:
      raise ValueError(f"only one axis may be -1, got {sizes}")
    return self


class Sampling(Section):
  temperature: Annotated[float, pydantic.Field(ge=0)] = 1.0
  top_k: Positive | None = None
  top_p: Fraction | None = None
  min_p: Fraction | None = None
  """Leave out what is less probable than this share of the most probable."""

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
  stop: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] = ()
  """Strings that end a completion when its text contains one of them."""
  num_slots: Positive | None = None
  """Completions in flight at once, when sampling and when evaluating; the
  others wait until one ends. null: all."""
  cache_dtype: DType | None = None
  """Of keys and values; null: bfloat16 on accelerators, that of the activations
  on a CPU."""
  mesh: Mesh | None = None
  """How the devices are arranged while sampling, where that is faster than as
  in `mesh`; null: as there."""


class Optimizer(Section):
  """AdamW behind a clip of the gradient's norm."""

  learning_rate: Above = 1e-5
  """Reached after the warm-up."""
  warmup_steps: NonNegative = 0
  """Training steps until then."""
  schedule: Literal["constant", "cosine"] = "constant"
  """After the warm-up; the cosine falls to 0 at `train.num_steps`."""
  beta1: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.9
  """Decay of the gradient's mean."""
  beta2: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.999
  """Decay of the gradient's square."""
  epsilon: Above = 1e-8
  """Added to the root of that square."""
  weight_decay: Weight = 0.01
  """Share of each weight taken off, times the learning rate."""
  max_gradient_norm: Above | None = 1.0
  """Longer gradients are scaled down to it; null: never."""
  mini_batch_size: Positive | None = None
  """Sequences of one update: several updates on the same rollouts, with
  off-policy ratios; null: one update, on all of them."""
  micro_batch_size: Positive | None = None
  """Sequences whose gradient is computed at once; null: all of an update."""


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
  mismatch_limit: Above | None = 0.05
  """Nats a token between sampler and training step under the same parameters,
  above which a run warns; null: never. Rounding explains about 1e-6 where
  network and cache are float32, 1e-2 where one is bfloat16; at 0.05 every
  probability is 5 % off."""
