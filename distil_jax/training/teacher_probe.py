"""Measures how often the teacher is right when it sees the feedback."""

import dataclasses

import jax
import numpy as np

from distil_jax.distributed import collectives
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.generation import random_keys
from distil_jax.generation.policy import Policy
from distil_jax.models import layers
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.rollouts.self_critique import PromptSampler
from distil_jax.types import BatchStats, Status, TrainBatch


@dataclasses.dataclass(frozen=True)
class TeacherProbe:
  """Lets the teacher answer problems on which the student has failed.

  Attributes:
    worker: Samples one completion for each teacher's prompt.
    policy: Turns tokens into text.
    judges: Judge the teacher's answers.
    mesh: The mesh in use.
    num_answers: Answers of this process at each call.
    success_threshold: A reward of at least this is right.
  """

  worker: PromptSampler
  policy: Policy
  judges: JudgePool
  mesh: jax.sharding.Mesh
  num_answers: int
  success_threshold: float

  def __call__(
    self,
    teacher_params: layers.Params,
    experience: Experience,
    batch: TrainBatch,
    stats: BatchStats,
    key: jax.Array,
  ) -> tuple[float, float]:
    """Returns the numbers of right answers and of answers, of all processes.

    Failures of different problems come first. If there are fewer failures than
    `num_answers`, other rows are sampled too, so that one program serves all
    steps, but they are not counted.
    """
    rows = self._failures(experience, batch)
    filled = rows + [0] * (self.num_answers - len(rows))
    problems = [experience.problems[i // experience.group_size] for i in filled]
    arrays = (
      stats.teacher_prompt_ids[filled],
      stats.teacher_prompt_mask[filled],
      random_keys.identities([problem.identity for problem in problems]),
    )
    sampled, _ = self.worker.sample(teacher_params, *arrays, key)
    texts = self.policy.texts(sampled.completion_ids, sampled.completion_mask)
    verdicts = self.judges(problems[: len(rows)], texts[: len(rows)])
    # A judge that crashed says nothing about the teacher.
    rewards = [v.reward for v in verdicts if v.status != Status.CRASHED]
    is_right = np.asarray(rewards) >= self.success_threshold
    sums = collectives.global_sums(
      {"correct": float(is_right.sum()), "answers": float(len(rewards))}
    )
    return sums["correct"], sums["answers"]

  def _failures(self, experience: Experience, batch: TrainBatch) -> list[int]:
    """Returns failed rows with a teacher signal, at most `num_answers`."""
    is_failure = experience.rewards < self.success_threshold
    has_signal = batch.sample_mask.reshape(is_failure.shape) == 1
    # Transposed, so that the first sample of every problem comes before the
    # second one of any.
    samples, problems = np.nonzero((is_failure & has_signal).T)
    rows = problems * experience.group_size + samples
    return rows[: self.num_answers].tolist()
