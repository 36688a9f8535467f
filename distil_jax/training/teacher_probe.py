"""How often the teacher is right when the feedback stands before it."""

import dataclasses

import jax
import numpy as np

from distil_jax.distributed import collectives
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.generation import random_keys
from distil_jax.generation.policy import Policy
from distil_jax.models import decoder
from distil_jax.training.batch_builder import Lesson
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.rollouts.rollout_worker import RolloutWorker
from distil_jax.types import Status


@dataclasses.dataclass(frozen=True)
class TeacherProbe:
  """Lets the teacher answer where the student has failed.

  Attributes:
    actor: samples one completion for each teacher's prompt.
    policy: turns tokens to text.
    judges: judge them.
    mesh: the mesh in use.
    num_answers: of this process in one inspection.
    success_threshold: a reward from here on is right.
  """

  actor: RolloutWorker
  policy: Policy
  judges: JudgePool
  mesh: jax.sharding.Mesh
  num_answers: int
  success_threshold: float

  def __call__(
    self,
    teacher_params: decoder.Params,
    experience: Experience,
    lesson: Lesson,
    key: jax.Array,
  ) -> tuple[float, float]:
    """Right answers and answers, of all processes.

    Failures of different problems come first. Where there are fewer than are
    asked for, the rest is sampled (one program serves all steps) and not
    counted.
    """
    rows = self._failures(experience, lesson)
    filled = rows + [0] * (self.num_answers - len(rows))
    problems = [experience.problems[i // experience.group_size] for i in filled]
    arrays = (
      lesson.teacher_prompt_ids[filled],
      lesson.teacher_prompt_mask[filled],
      random_keys.identities([problem.index for problem in problems]),
    )
    sampled, _ = self.actor.sample(teacher_params, *arrays, key)
    texts = self.policy.texts(sampled.completion_ids, sampled.completion_mask)
    verdicts = self.judges(problems[: len(rows)], texts[: len(rows)])
    rewards = [v.reward for v in verdicts if v.status != Status.CRASHED]
    is_right = np.asarray(rewards) >= self.success_threshold
    sums = collectives.global_sums(
      {"correct": float(is_right.sum()), "answers": float(len(rewards))}
    )
    return sums["correct"], sums["answers"]

  def _failures(self, experience: Experience, lesson: Lesson) -> list[int]:
    """Rows that failed and have something to tell, at most `num_answers`."""
    is_failure = experience.rewards < self.success_threshold
    has_signal = lesson.batch.sample_mask.reshape(is_failure.shape) == 1
    members, problems = np.nonzero((is_failure & has_signal).T)
    rows = problems * experience.group_size + members
    return rows[: self.num_answers].tolist()
