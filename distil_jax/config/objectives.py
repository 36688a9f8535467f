"""Config sections of the objectives, with the traits that others ask for.

A trait says what an objective needs, so that no other module has to know the
kinds: a new objective declares its own.
"""

from typing import Annotated, ClassVar, Literal

import pydantic

from distil_jax.config.base import (
  Above,
  ConfigError,
  Fraction,
  Positive,
  Section,
  Share,
  Weight,
)
from distil_jax.config.teacher import TeacherConfig

Support = Literal["student", "teacher"]


class _BaseConfig(Section):
  """Settings and traits that every objective has."""

  # True if a teacher with a prompt of its own is asked.
  needs_teacher: ClassVar[bool] = False
  # False if it learns from demonstrations in place of samples.
  uses_rollouts: ClassVar[bool] = True

  aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
  """Average over the tokens of the batch, or over its sequences' averages."""
  chunk_size: Positive | None = None
  """Columns of time whose logits are in memory at once; null: by memory."""

  @property
  def learns_from_rewards(self) -> bool:
    """Returns True if it learns from differences of rewards in a group."""
    return False

  @property
  def weighs_failures(self) -> bool:
    """Returns True if feedback weighs nothing where all others succeed."""
    return False

  @property
  def has_score_function(self) -> bool:
    """Returns True if the loss weighs log π of sampled tokens."""
    return False

  @property
  def group_settings(self) -> dict[str, str]:
    """Returns the settings that compare a group's members, and their cures."""
    return {}

  @property
  def probability_settings(self) -> dict[str, str]:
    """Returns the settings that samples of a teacher cannot serve, and cures.

    They need probabilities; a sample says only which token was drawn.
    """
    return {}

  @property
  def charges_teacher_log_probs(self) -> bool:
    """Returns True if it reads what the teacher makes of the student's tokens.

    That is its log-probability of each, whether it is in a list or not.
    """
    return False

  def keeps_teacher(self, teacher: TeacherConfig) -> bool:
    """Returns True if parameters besides the student's are kept."""
    del teacher
    return False


class _FeedbackConfig(_BaseConfig):
  """An objective whose teacher reads the feedback."""

  needs_teacher: ClassVar[bool] = True

  importance_clip: Above | None = 2.0
  """Largest off-policy ratio; used with `optimizer.mini_batch_size`."""
  max_teacher_entropy: Above | None = None
  """Nats; where the teacher is less sure of the next token, its cost counts 0,
  also in the future costs of earlier tokens. null: no limit."""

  @property
  def probability_settings(self) -> dict[str, str]:
    cure = (
      "kind=distil with local_cost=forward_cross_entropy and cost=cross_entropy"
    )
    found = {f"kind={getattr(self, 'kind', None)}": cure}
    return found | self._entropy_settings

  @property
  def _entropy_settings(self) -> dict[str, str]:
    if self.max_teacher_entropy is None:
      return {}
    limit = f"max_teacher_entropy={self.max_teacher_entropy}"
    return {limit: "max_teacher_entropy=null"}

  def keeps_teacher(self, teacher: TeacherConfig) -> bool:
    return teacher.parameters != "current" and not teacher.is_other_model


class DistilConfig(_FeedbackConfig):
  """A local cost to the teacher, plus future credit.

  The defaults are the row `default` of `docs/results/comparison.md`: feedback
  weighted by failure, reward beside it. As published: `cost=cross_entropy`,
  `local_cost=null`, `future_weight=1`, `baseline=null`,
  `terminal_neutral=false`, `reward_weight=0`, `failure_weighted=false`, and a
  teacher with `parameters=ema`.
  """

  kind: Literal["distil"] = "distil"
  """DistIL."""
  local_cost: (
    Literal["forward_cross_entropy", "forward_kl", "reverse_kl"] | None
  ) = "reverse_kl"
  """Cost that each token minimises by itself; null: the same as `cost`."""
  cost: Literal["cross_entropy", "kl"] = "kl"
  """Cost that future credit sums; `kl` leaves out the teacher's own entropy."""
  future_weight: Weight = 4.0
  """Weight of the future costs; 0 leaves the local cost alone."""
  normalize: bool = True
  """Mean of the future costs, not their sum."""
  discount: Fraction = 1.0
  """Weight of a cost for each token that it lies further ahead."""
  baseline: Literal["leave_one_out", "batch_mean"] | None = "leave_one_out"
  """Taken off the future costs: the mean of the group's others at the same
  position, or of the whole batch."""
  terminal_neutral: bool = True
  """The last token gets no future credit, so that stopping never pays."""
  differential: bool = False
  """Future costs count from the batch's mean cost of a token."""
  reward_weight: Weight = 4.0
  """Weight of the group-relative reward in the same score function."""
  normalize_std: bool = True
  """Divide that reward by the group's standard deviation."""
  failure_weighted: bool = True
  """Weigh feedback by how often the group's others fail."""
  top_k: Positive | None = None
  """Tokens whose cost is taken; null: the whole vocabulary."""
  top_k_of: Support = "student"
  """Whose most probable tokens they are."""
  tail: bool = True
  """One more bucket for all other tokens; false: renormalise without them."""
  temperature: Annotated[float, pydantic.Field(ge=1e-6)] = 1.0
  """Both logits are divided by it before costs are taken; log π in the score
  function is at 1."""

  @property
  def learns_from_rewards(self) -> bool:
    return self.reward_weight > 0

  @property
  def weighs_failures(self) -> bool:
    return self.failure_weighted

  @property
  def probability_settings(self) -> dict[str, str]:
    found = {}
    if self.local_cost in ("forward_kl", "reverse_kl"):
      found[f"local_cost={self.local_cost}"] = (
        "local_cost=forward_cross_entropy"
      )
    if self.cost == "kl":
      found["cost=kl"] = "cost=cross_entropy"
    return found | self._entropy_settings

  @property
  def has_score_function(self) -> bool:
    return self.future_weight > 0 or self.learns_from_rewards

  @property
  def group_settings(self) -> dict[str, str]:
    found = {}
    if self.baseline == "leave_one_out":
      found["baseline=leave_one_out"] = "baseline=batch_mean or null"
    if self.learns_from_rewards:
      found["reward_weight"] = "reward_weight=0"
    if self.failure_weighted:
      found["failure_weighted"] = "failure_weighted=false"
    return found


class SDPOConfig(_FeedbackConfig):
  """Jensen-Shannon family, no future credit (arXiv:2601.20802)."""

  kind: Literal["sdpo"] = "sdpo"
  """SDPO."""
  alpha: Share = 0.5
  """0: forward KL; 1: reverse KL; between: (1-alpha) s + alpha t is the mix."""
  top_k: Positive | None = None
  """Tokens whose divergence is taken; null: the whole vocabulary."""
  top_k_of: Support = "student"
  """Whose most probable tokens they are."""
  tail: bool = True
  """One more bucket for all other tokens; false: renormalise without them."""


class OPSDConfig(_FeedbackConfig):
  """Generalised Jensen-Shannon divergence, no credit (arXiv:2601.18734)."""

  kind: Literal["opsd"] = "opsd"
  """OPSD."""
  beta: Share = 0.5
  """0: forward KL; 1: reverse KL; between: (1-beta) s + beta t is the mix."""
  top_k: Positive | None = None
  """Tokens whose divergence is taken; null: the whole vocabulary."""
  top_k_of: Support = "teacher"
  """Whose most probable tokens they are."""
  tail: bool = False
  """One more bucket for all other tokens; false: renormalise without them."""
  token_clip: Above | None = None
  """Largest part of one vocabulary entry in a token's divergence, nats."""
  temperature: Annotated[float, pydantic.Field(ge=1e-6)] = 1.0
  """Both logits are divided by it before the divergence."""


class MiniLLMConfig(_FeedbackConfig):
  """Reverse KL, exact locally, sampled in the future (arXiv:2306.08543)."""

  kind: Literal["minillm"] = "minillm"
  """MiniLLM."""
  future_weight: Weight = 1.0
  """Weight of the future costs; 0 leaves the local divergence alone."""
  normalize: bool = True
  """Mean of the future costs, not their sum."""

  @property
  def charges_teacher_log_probs(self) -> bool:
    return self.future_weight > 0

  @property
  def has_score_function(self) -> bool:
    return self.future_weight > 0


class GRPOConfig(_BaseConfig):
  """Group-relative rewards with a clipped ratio; no teacher."""

  kind: Literal["grpo"] = "grpo"
  """GRPO; without `normalize_std` Dr. GRPO."""
  clip_low: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.2
  """Distance below 1 at which a ratio is clipped."""
  clip_high: Weight = 0.28
  """Distance above 1 at which a ratio is clipped."""
  normalize_std: bool = False
  """Divide rewards by the group's standard deviation."""
  kl_weight: Weight = 0.0
  """Weight of the divergence from the initial policy."""

  @property
  def learns_from_rewards(self) -> bool:
    return True

  @property
  def has_score_function(self) -> bool:
    return True

  @property
  def group_settings(self) -> dict[str, str]:
    return {"kind=grpo": "another objective"}

  def keeps_teacher(self, teacher: TeacherConfig) -> bool:
    # The reference of the divergence takes the teacher's place.
    return self.kl_weight > 0


class SFTConfig(_BaseConfig):
  """Negative log-likelihood of demonstrations."""

  uses_rollouts: ClassVar[bool] = False

  kind: Literal["sft"] = "sft"
  """Supervised."""


ObjectiveConfig = Annotated[
  DistilConfig
  | SDPOConfig
  | OPSDConfig
  | MiniLLMConfig
  | GRPOConfig
  | SFTConfig,
  pydantic.Field(discriminator="kind"),
]


def check_teacher(objective: ObjectiveConfig, teacher: TeacherConfig) -> None:
  """Refuses a teacher that cannot give what the objective needs.

  Raises:
    ConfigError: with the settings' paths and the cure.
  """
  kl_weight = getattr(objective, "kl_weight", 0.0)
  if kl_weight > 0 and teacher.parameters != "frozen":
    raise ConfigError(
      f"objective.kl_weight={kl_weight} measures from the initial policy, but "
      f"teacher.parameters={teacher.parameters} keeps none; set "
      "teacher.parameters=frozen, or kl_weight=0"
    )
  if not objective.needs_teacher:
    if teacher.guard:
      raise ConfigError(
        f"teacher.guard is set, but objective.kind={objective.kind} has no "
        "teacher to watch; set teacher.guard=null"
      )
  elif teacher.access != "probabilities":
    _check_list(objective, teacher)


def _check_list(objective: ObjectiveConfig, teacher: TeacherConfig) -> None:
  """Refuses settings that a short list of tokens cannot serve."""
  access = f"teacher.access={teacher.access}"
  has_samples = teacher.access == "samples"
  cures = objective.probability_settings if has_samples else {}
  if cures:
    raise ConfigError(
      f"{', '.join(f'objective.{name}' for name in cures)}: needs the "
      f"teacher's probabilities, and {access} tells only which tokens it drew; "
      f"set {', '.join(f'objective.{cure}' for cure in cures.values())}, or "
      "teacher.access=top_k or probabilities"
    )
  top_k = getattr(objective, "top_k", None)
  if top_k is not None:
    raise ConfigError(
      f"objective.top_k={top_k} chooses from the vocabulary, but with {access} "
      "the teacher's list is all there is; set objective.top_k=null and choose "
      "its length with teacher.num_samples or teacher.top_k"
    )
  temperature = getattr(objective, "temperature", 1.0)
  tail = getattr(objective, "tail", True)
  if temperature != 1 and (has_samples or tail):
    cure = "" if has_samples else "objective.tail=false, "
    raise ConfigError(
      f"objective.temperature={temperature} divides the teacher's logits, and "
      f"{access} does not tell those of all tokens; set {cure}"
      "objective.temperature=1, or teacher.access=probabilities"
    )
  if not has_samples and not tail and teacher.top_k == 1:
    raise ConfigError(
      "teacher.top_k=1 with objective.tail=false: renormalised over one token "
      "student and teacher are both certain of it, so that nothing could be "
      "learned; raise teacher.top_k, or set objective.tail=true"
    )
  server = teacher.server
  is_told = server is None or server.protocol != "next_token"
  if objective.charges_teacher_log_probs and not is_told:
    raise ConfigError(
      f"objective.kind={objective.kind} charges the teacher's log-probability "
      "of the student's own tokens, for which "
      "teacher.server.protocol=next_token does not ask; set "
      "teacher.server.protocol to prompt_logprobs or echo, or "
      "objective.future_weight=0"
    )
