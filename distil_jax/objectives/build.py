"""From the sections of a config to the functions of a training step."""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from distil_jax import config, objectives
from distil_jax.objectives import base, losses
from distil_jax.objectives import teachers as objectives_teacher
from distil_jax.ops import advantages
from distil_jax.ops.divergences import Divergence


def build_objective(
  objective: config.ObjectiveConfig,
  teacher: config.TeacherConfig,
  *,
  graphdef: nnx.GraphDef,
  group_size: int,
  is_cut: bool,
  splits_groups: bool,
  is_off_policy: bool,
) -> base.Objective:
  config.check_teacher(objective, teacher)
  network = {"graphdef": graphdef, "chunk_size": objective.chunk_size}
  if isinstance(objective, config.SFTConfig):
    return base.Objective(
      prepare_fn=functools.partial(
        losses.prepare, aggregation=objective.aggregation
      ),
      loss_fn=functools.partial(losses.sft_loss, **network),
    )
  prepare_fn = _prepare_fn(objective, group_size)
  if isinstance(objective, config.GRPOConfig):
    return base.Objective(
      prepare_fn=prepare_fn,
      loss_fn=functools.partial(
        losses.policy_gradient_loss,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        kl_weight=objective.kl_weight,
        is_off_policy=is_off_policy,
        **network,
      ),
    )
  ask_fn, source_fn = _teacher_fns(objective, teacher, network)
  common = {
    "source_fn": source_fn,
    "costs_fn": _costs_fn(objective),
    "chunk_size": objective.chunk_size,
  }
  settings = _score_settings(objective, group_size)
  credit_fn = score_fn = None
  if settings is not None and _needs_all_costs(
    objective, splits_groups, is_cut
  ):
    credit_fn = functools.partial(
      losses.batch_credit,
      score_fn=functools.partial(losses.scores, **settings),
      **common,
    )
  elif settings is not None:
    score_fn = functools.partial(objectives.score_weights_before, **settings)
  return base.Objective(
    prepare_fn=prepare_fn,
    loss_fn=functools.partial(
      losses.feedback_loss,
      reward_weight=getattr(objective, "reward_weight", 0.0),
      importance_clip=objective.importance_clip,
      is_off_policy=is_off_policy,
      score_fn=score_fn,
      **common,
    ),
    credit_fn=credit_fn,
    ask_fn=ask_fn,
  )


def _prepare_fn(objective, group_size: int) -> Callable[..., losses.Piece]:
  """What the rewards of a group say of each of its sequences."""
  is_grpo = isinstance(objective, config.GRPOConfig)
  learns_from_rewards = is_grpo or getattr(objective, "reward_weight", 0.0) > 0
  advantage_fn = failure_fn = None
  if learns_from_rewards:
    advantage_fn = functools.partial(
      advantages.group_advantages,
      group_size=group_size,
      normalize_std=objective.normalize_std,
      leave_one_out=not is_grpo,
    )
  if getattr(objective, "failure_weighted", False):
    failure_fn = functools.partial(
      advantages.failure_weights, group_size=group_size
    )
  return functools.partial(
    losses.prepare,
    aggregation=objective.aggregation,
    everyone_counts=learns_from_rewards,
    advantage_fn=advantage_fn,
    failure_fn=failure_fn,
  )


def _teacher_fns(
  objective, teacher: config.TeacherConfig, network: dict[str, Any]
):
  """How the teacher is asked beforehand, if it is, and how it is compared."""
  rate = None
  if teacher.parameters == "trust_region":
    rate = teacher.trust_region_rate
  if teacher.access == "probabilities":
    source_fn = functools.partial(
      objectives_teacher.exact_source,
      graphdef=network["graphdef"],
      divergence=_divergence(objective),
      trust_region_rate=rate,
    )
    return None, source_fn
  sizes = {"samples": teacher.num_samples, "top_k": teacher.top_k}
  ask_fn = functools.partial(
    objectives_teacher.ask_teacher,
    kind=teacher.access,
    size=sizes[teacher.access],
    trust_region_rate=rate,
    **network,
  )
  source_fn = functools.partial(
    objectives_teacher.list_source,
    graphdef=network["graphdef"],
    kind=teacher.access,
    # Samples are drawn from the whole vocabulary: nothing is left out.
    tail=objective.tail and teacher.access == "top_k",
  )
  return ask_fn, source_fn


def _divergence(objective) -> Divergence:
  match objective.kind:
    case "distil":
      kind = objectives.local_kind(objective.cost, objective.local_cost)
      settings = _picked(objective, "top_k", "top_k_of", "tail")
    case "sdpo":
      kind = "sdpo"
      settings = _picked(objective, "top_k", "top_k_of", "tail")
      settings["weight"] = objective.alpha
    case "opsd":
      kind = "opsd"
      settings = _picked(
        objective, "top_k", "top_k_of", "tail", "token_clip", "temperature"
      )
      settings["weight"] = objective.beta
    case _:
      kind, settings = "reverse_kl", {}
  return Divergence(kind=kind, **settings)


def _costs_fn(objective) -> Callable[..., Any]:
  match objective.kind:
    case "distil":
      return functools.partial(objectives.token_costs, cost=objective.cost)
    case "minillm":
      return objectives.sampled_reverse_kl
    case _:
      return losses.local_costs


def _score_settings(objective, group_size: int) -> dict[str, Any] | None:
  """Of the functions that make credit; None: there is none."""
  match objective.kind:
    case "distil":
      settings = _picked(
        objective,
        "future_weight",
        "normalize",
        "discount",
        "baseline",
        "terminal_neutral",
      )
      # What only the whole batch's costs can tell.
      if objective.differential:
        settings["differential"] = True
    case "minillm":
      settings = _picked(objective, "future_weight", "normalize")
    case _:
      return None
  return {"group_size": group_size, **settings}


def _needs_all_costs(objective, splits_groups: bool, is_cut: bool) -> bool:
  """Whether a token's credit depends on costs that are not after it.

  Or on those of sequences in another slice of the batch.
  """
  if objective.kind != "distil":
    return False
  by_group = objective.baseline == "leave_one_out" and splits_groups
  by_batch = objective.baseline == "batch_mean" and is_cut
  return by_group or by_batch or objective.differential


def _picked(objective, *names: str) -> dict[str, Any]:
  return {name: getattr(objective, name) for name in names}
