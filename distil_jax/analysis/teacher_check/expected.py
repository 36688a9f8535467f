"""Says which formulas a config asks for, in the words of `reference`."""

import dataclasses
from typing import Any

from distil_jax.analysis.teacher_check.reference import Credit, Formula
from distil_jax.config.objectives import (
  DistilConfig,
  MiniLLMConfig,
  ObjectiveConfig,
  OPSDConfig,
  SDPOConfig,
)

_LOCAL = {
  "forward_cross_entropy": "forward cross-entropy",
  "forward_kl": "forward KL",
  "reverse_kl": "reverse KL",
}
_CARRIED = {"cross_entropy": "forward cross-entropy", "kl": "forward KL"}


def local_formula(objective: ObjectiveConfig) -> Formula:
  """Returns the cost that each token minimises by itself."""
  support: dict[str, Any] = {}
  if not isinstance(objective, MiniLLMConfig) and hasattr(objective, "top_k"):
    support = {
      name: getattr(objective, name) for name in ("top_k", "top_k_of", "tail")
    }
  match objective:
    case DistilConfig():
      name = _CARRIED[objective.cost]
      if objective.local_cost is not None:
        name = _LOCAL[objective.local_cost]
      return Formula(name, temperature=objective.temperature, **support)
    case SDPOConfig():
      return _between(objective.alpha, **support)
    case OPSDConfig():
      return _between(
        objective.beta,
        token_clip=objective.token_clip,
        temperature=objective.temperature,
        **support,
      )
  return Formula("reverse KL")


def carried_formula(objective: ObjectiveConfig) -> Formula:
  """Returns the cost that is charged to the tokens before it."""
  local = local_formula(objective)
  match objective:
    case DistilConfig():
      return dataclasses.replace(local, name=_CARRIED[objective.cost])
    case MiniLLMConfig():
      return Formula("sampled reverse KL")
  return local


def credit_settings(
  objective: ObjectiveConfig, group_size: int
) -> Credit | None:
  """Returns what becomes of future costs; None without future credit."""
  match objective:
    case DistilConfig():
      return Credit(
        future_weight=objective.future_weight,
        normalize=objective.normalize,
        group_size=group_size,
        discount=objective.discount,
        baseline=objective.baseline,
        terminal_neutral=objective.terminal_neutral,
        differential=objective.differential,
      )
    case MiniLLMConfig():
      return Credit(
        future_weight=objective.future_weight,
        normalize=objective.normalize,
        group_size=group_size,
      )
  return None


def _between(weight: float, **support: Any) -> Formula:
  """Returns a formula between the two KLs, which are its ends."""
  ends = {0.0: "forward KL", 1.0: "reverse KL"}
  return Formula(ends.get(weight, "Jensen-Shannon"), weight=weight, **support)
