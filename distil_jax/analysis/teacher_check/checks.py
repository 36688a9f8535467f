"""Compares what a run computes with what it should compute.

Each check takes what was gathered and the evidence, and runs nothing.
"""

from collections.abc import Sequence

import numpy as np

from distil_jax.analysis.teacher_check import expected, prompt_checks, reference
from distil_jax.analysis.teacher_check.records import (
  Check,
  Evidence,
  Gathered,
  Movement,
)

# Nats per token by which two passes may differ because of rounding, relative
# to 1 and the size of what is compared.
_ROUNDING = {"float32": 1e-3, "bfloat16": 0.05}
_DEFAULT_MISMATCH = 0.05
# Garbage at padding changes nothing, but sums of a GPU may differ in order.
_PADDING_LIMIT = 1e-4
# Standard errors: chance goes so far once in two million checks.
_CHANCE = 5.0


def all_checks(gathered: Gathered, evidence: Evidence | None) -> list[Check]:
  """Returns every check in the order of the report.

  Args:
    gathered: from `gather.gather`.
    evidence: from `evidence.collect`; None if no sample has a teacher.
  """
  if evidence is None:
    return [prompt_checks.feedback(gathered), _nothing_to_compare()]
  return [
    alignment(gathered, evidence),
    prompt_checks.tokenizer(gathered),
    direction(gathered, evidence),
    teacher_rate(evidence.teacher, gathered),
    padding(evidence),
    sampler(gathered, evidence),
    credit(gathered, evidence),
    prompt_checks.feedback(gathered),
  ]


def alignment(gathered: Gathered, evidence: Evidence) -> Check:
  """Checks that the teacher's state t is the one that predicts token t."""
  access, mask = gathered.config.teacher.access, gathered.teacher_mask
  # Likelihoods of the student's tokens, or of those in the teacher's lists.
  name = "{}_log_probs" if access == "probabilities" else "list/{}"
  aligned, early, late = (
    evidence.tokens[name.format(kind)][mask]
    for kind in ("teacher", "early", "late")
  )
  is_ok, said = {
    "probabilities": _same_probabilities,
    "samples": _likely_samples,
    "top_k": _same_lists,
  }[access](gathered, evidence)
  return Check(
    "alignment",
    is_ok and not _is_below(aligned - early) and not _is_below(aligned - late),
    f"{said}; log-likelihood {aligned.mean():.3f} nats a token, one state "
    f"earlier {early.mean():.3f}, later {late.mean():.3f}",
    "the teacher is read at other states than those before each token; look "
    "at objectives.scoring and at what cuts the teacher's sequence",
  )


def _same_probabilities(
  gathered: Gathered, evidence: Evidence
) -> tuple[bool, str]:
  """Compares the teacher's probabilities with those of plain passes."""
  gaps = {
    kind: _gap(
      evidence.signal["teacher_log_probs"],
      evidence.tokens[f"{kind}_log_probs"],
      gathered.teacher_mask,
    )
    for kind in ("teacher", "early", "late")
  }
  is_nearest = gaps["teacher"] < min(gaps["early"], gaps["late"])
  return (
    is_nearest and gaps["teacher"] <= _limit(gathered),
    f"{gaps['teacher']:.1e} nats from a plain pass",
  )


def _same_lists(gathered: Gathered, evidence: Evidence) -> tuple[bool, str]:
  """Compares listed log-probabilities with those of plain passes."""
  gap = float(np.mean(evidence.tokens["list/distance"][gathered.teacher_mask]))
  return (
    gap <= _limit(gathered),
    f"lists are {gap:.1e} nats from a plain pass",
  )


def _likely_samples(gathered: Gathered, evidence: Evidence) -> tuple[bool, str]:
  """Compares the likelihood of samples with what chance makes of it."""
  tokens, mask = evidence.tokens, gathered.teacher_mask
  # The mean of log p(a) over samples a is minus the entropy.
  excess = (tokens["list/teacher"] + tokens["teacher_entropies"])[mask].sum()
  error = np.sqrt(tokens["list/variance"][mask].sum())
  distance = float(abs(excess) / max(error, 1e-12))
  return (
    distance <= _CHANCE,
    f"samples are {distance:.1f} standard errors from the teacher's own",
  )


def direction(gathered: Gathered, evidence: Evidence) -> Check:
  """Checks that the objective's cost is the formula that the config names."""
  config, mask = gathered.config, gathered.teacher_mask
  tokens, signal = evidence.tokens, evidence.signal
  local = expected.local_formula(config.objective)
  carried = expected.carried_formula(config.objective)
  gaps = {
    local.name: _gap(signal["costs"], tokens["costs"], mask),
    f"carried {carried.name}": _gap(signal["carried"], tokens["carried"], mask),
  }
  if _has_one_update(gathered):
    mean = float(np.mean(tokens["carried"][mask]))
    gaps["the step's cost"] = abs(evidence.metrics["cost"] - mean)
  rivals = {
    name.removeprefix("rival/"): _gap(signal["costs"], values, mask)
    for name, values in tokens.items()
    if name.startswith("rival/")
  }
  nearest = min(rivals, key=lambda name: rivals[name])
  own = gaps[local.name]
  scale = 1 + float(np.mean(np.abs(tokens["costs"][mask])))
  is_near = all(gap <= _limit(gathered) * scale for gap in gaps.values())
  said = ", ".join(f"{name} to {gap:.1e} nats" for name, gap in gaps.items())
  said += f"; {nearest} would be {rivals[nearest]:.1e} away"
  cure = (
    f"the cost is not {local.name} of student and teacher; look at "
    f"objective.kind={config.objective.kind} and ops.divergences"
  )
  is_ok: bool | None = is_near and own <= rivals[nearest]
  if is_ok and rivals[nearest] <= 3 * own:
    is_ok = None
    said += "; student and teacher are too close to tell them apart"
  return Check("direction", is_ok, said, cure)


def teacher_rate(moved: Movement | None, gathered: Gathered) -> Check:
  """Checks how far the teacher followed the student in a step."""
  section = gathered.config.teacher
  if moved is None and section.other_models:
    named = ", ".join(
      f"{key}.directory={model.directory}"
      for key, model in section.other_models.items()
    )
    return Check(
      "teacher's rate",
      None,
      f"{named}: no part of the training state, which a step could move",
    )
  if moved is None:
    return Check(
      "teacher's rate",
      None,
      f"teacher.parameters={section.parameters} keeps no weights that move",
    )
  if moved.rate == 0:
    return Check(
      "teacher's rate",
      moved.distance == 0,
      f"stays: {moved.num_params} parameters moved by {moved.distance:.1e}",
      "a teacher that is not a moving average must not be updated; look at "
      "training.train_step",
    )
  relative = abs(moved.measured_rate / moved.rate - 1)
  return Check(
    "teacher's rate",
    moved.deviation <= 4 and relative <= 0.02,
    f"{moved.measured_rate:.5f} of the way to the student, "
    f"teacher.ema_rate={moved.rate:g}; off by {moved.deviation:.1f} roundings "
    "at most",
    "the teacher follows at another rate than teacher.ema_rate; if it does not "
    "move at all, its type is too coarse: set optimizer.master_dtype=float32",
  )


def padding(evidence: Evidence) -> Check:
  """Checks that garbage at padding changes neither costs nor gradients."""
  trial = evidence.padding
  if trial.num_positions == 0:
    return Check("padding", None, "the batch has no padding")
  gaps = {
    name: abs(one - other) / (abs(one) + 1e-30) if one != other else 0.0
    for name, (one, other) in trial.metrics.items()
  }
  gaps["parameters and moments"] = trial.distance
  said = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
  return Check(
    "padding",
    # NaN is not below the limit.
    all(gap <= _PADDING_LIMIT for gap in gaps.values()),
    f"garbage at {trial.num_positions} positions changes: {said} (relative)",
    "what stands at padding reaches the loss; look for a value that is weighed "
    "before it is masked (ops.masking.where_counts)",
  )


def sampler(gathered: Gathered, evidence: Evidence) -> Check:
  """Checks that sampler, training step and plain pass score alike."""
  limit = gathered.config.logging.mismatch_limit or _DEFAULT_MISMATCH
  mask = np.asarray(gathered.batch.student_tokens) == 1
  old = np.asarray(gathered.batch.old_log_probs, np.float64)
  plain = evidence.tokens["student_log_probs"]
  gaps = {
    "sampler and step": evidence.metrics["mismatch/mean"],
    "sampler and plain pass": _gap(old, plain, mask),
    "scorer and plain pass": _gap(evidence.signal["log_probs"], plain, mask),
  }
  said = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
  return Check(
    "sampler = scorer",
    all(gap <= limit for gap in gaps.values()),
    f"{said} nats a token; the limit is {limit:g}",
    "the sampler computes other probabilities than the training step; set "
    "rollout.cache_dtype and model.compute_dtype to float32, and if it stays, "
    "look at models.cached_forward",
  )


def credit(gathered: Gathered, evidence: Evidence) -> Check:
  """Checks future costs and their weights against a loop in float64."""
  config, signal = gathered.config, evidence.signal
  settings = expected.credit_settings(
    config.objective, config.rollout.group_size
  )
  if settings is None:
    return Check(
      "credit",
      None,
      f"objective.kind={config.objective.kind} has no future credit",
    )
  mask = gathered.teacher_mask
  future, weights = reference.credit(signal["charged"], mask, settings)
  gaps = {
    "future costs": _worst(signal["future_costs"], future, mask),
    "weights": _worst(signal["score_weights"], weights, mask),
  }
  if _has_one_update(gathered):
    mean = float(np.mean(future[mask]))
    gaps["the step's mean"] = abs(evidence.metrics["future_cost"] - mean)
  size = float(np.abs(future[mask]).max(initial=0))
  said = ", ".join(f"{name} to {gap:.1e}" for name, gap in gaps.items())
  return Check(
    "credit",
    all(gap <= 1e-4 * (1 + size) for gap in gaps.values()),
    f"{said} nats; the largest future cost is {size:.2f}",
    "future costs are not sums over what follows each token; look at "
    "objective.normalize, discount and baseline, and at ops.credit",
  )


def failures(checks: Sequence[Check]) -> list[Check]:
  """Returns the checks that failed."""
  return [check for check in checks if check.is_ok is False]


def _nothing_to_compare() -> Check:
  return Check(
    "signal",
    False,
    "no token has a teacher",
    "ask for more problems with --num-problems, or change teacher.feedback and "
    "teacher.solution so that these samples get a signal",
  )


def _limit(gathered: Gathered) -> float:
  config = gathered.config
  sections = [
    config.model,
    *config.teacher.other_models.values(),
  ]
  return max(_ROUNDING[section.compute_dtype] for section in sections)


def _has_one_update(gathered: Gathered) -> bool:
  """Returns True if all of the batch is scored by the same parameters."""
  mini = gathered.config.optimizer.mini_batch_size
  return mini is None or mini == gathered.config.num_sequences


def _gap(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
  """Returns the mean distance of the tokens that count."""
  return float(np.mean(np.abs(one[mask] - other[mask])))


def _worst(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
  return float(np.abs(one[mask] - other[mask]).max(initial=0))


def _is_below(differences: np.ndarray) -> bool:
  """Returns True if a mean is below 0 by more than chance."""
  error = np.std(differences) / np.sqrt(len(differences))
  return bool(np.mean(differences) < -_CHANCE * error)
