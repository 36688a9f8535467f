"""Gathers a completion that somebody wrote, as if a run had sampled it."""

from collections.abc import Sequence

from distil_jax.analysis.teacher_check import one_sample
from distil_jax.analysis.teacher_check.records import Gathered
from distil_jax.config.schema import Config
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.generation.policy import Policy
from distil_jax.training.setup import steps
from distil_jax.types import Problem, Verdict


def gather(
  config: Config,
  policy: Policy,
  problem: Problem,
  ids: Sequence[int],
  verdict: Verdict,
  writer: Tokenizer | None = None,
) -> Gathered:
  """Returns the batch of one completion, as a training step would see it.

  Args:
    config: has a group size of 1, and limits that the lengths do not exceed.
    policy: the student.
    problem: that it answers.
    ids: its tokens.
    verdict: on it; the teacher reads the feedback.
    writer: the tokenizer of a teacher that is another model; None means the
      student's.
  """
  experience = one_sample.experience_of(
    policy.tokenizer,
    problem,
    ids,
    verdict,
    max_prompt_length=config.rollout.max_prompt_length,
    max_completion_length=config.rollout.max_completion_length,
  )
  settings = steps.build_teacher_settings(config)
  assert settings is not None, "the objective has a teacher"
  batch, stats = steps.batch_builder.from_experience(
    experience, writer or policy.tokenizer, settings
  )
  return Gathered(
    config=config,
    experience=experience,
    batch=batch,
    stats=stats,
    tokenizer=policy.tokenizer,
    teacher_tokenizer=writer or policy.tokenizer,
    vocab_size=policy.config.vocab_size,
  )
