"""What a step computed, by the rows that each network reads."""

import dataclasses

import jax
import numpy as np

from distil_jax.models import model_flops
from distil_jax.training import step_work
from distil_jax.training.step_work import Networks
from tests import networks

STUDENT = networks.config_of()
LARGE = networks.config_of(width=32)
BATCH = jax.tree.map(np.asarray, networks.random_batch(3))
PROMPTS, TEACHER_PROMPTS, COMPLETIONS = (
  getattr(BATCH, f"{name}_mask").sum(axis=1)
  for name in ("prompt", "teacher_prompt", "completion")
)


def passes(config, lengths, rows=slice(None)):
  num_logits = COMPLETIONS[rows].sum()
  return model_flops.count(config, lengths[rows], num_logits)


OWN = passes(STUDENT, PROMPTS + COMPLETIONS)


def test_student_trains_and_teachers_read():
  read = TEACHER_PROMPTS + COMPLETIONS
  teacher = passes(LARGE, read).forward
  found = step_work.update_flops(Networks(STUDENT, (LARGE,)), BATCH)
  assert found == OWN.training + teacher
  twice = Networks(STUDENT, (LARGE,), num_teacher_passes=2)
  assert step_work.update_flops(twice, BATCH) == OWN.training + 2 * teacher
  # Each of several teachers reads its own rows.
  index = np.arange(len(COMPLETIONS)) % 2
  split = dataclasses.replace(BATCH, teacher_index=index)
  shares = passes(STUDENT, read, index == 0), passes(LARGE, read, index == 1)
  found = step_work.update_flops(Networks(STUDENT, (STUDENT, LARGE)), split)
  assert found == OWN.training + sum(x.forward for x in shares)


def test_a_reference_reads_what_the_student_does():
  found = step_work.update_flops(Networks(STUDENT, reads_reference=True), BATCH)
  assert found == OWN.training + OWN.forward


def test_a_shared_beginning_is_read_once():
  length = 3
  prefix = np.ones((len(COMPLETIONS) // 2, length), int)
  split = dataclasses.replace(
    BATCH, teacher_prefix_ids=prefix, teacher_prefix_mask=prefix
  )
  teacher = model_flops.count(
    STUDENT,
    length + TEACHER_PROMPTS + COMPLETIONS,
    COMPLETIONS.sum(),
    np.full(len(COMPLETIONS), length),
  )
  once = model_flops.count(STUDENT, prefix.sum(axis=1), 0)
  found = step_work.update_flops(Networks(STUDENT, (STUDENT,)), split)
  assert found == OWN.training + teacher.forward + once.forward


def test_turns_have_prompts_of_their_own():
  later = np.stack([BATCH.teacher_prompt_mask] * 2, axis=1)
  # The second sequence has one turn.
  later[1] = 0
  turns = dataclasses.replace(
    BATCH, later_prompt_ids=later, later_prompt_mask=later
  )
  read = passes(STUDENT, TEACHER_PROMPTS + COMPLETIONS)
  rest = np.arange(len(COMPLETIONS)) != 1
  more = passes(STUDENT, TEACHER_PROMPTS + COMPLETIONS, rest)
  found = step_work.update_flops(Networks(STUDENT, (STUDENT,)), turns)
  assert found == OWN.training + read.forward + 2 * more.forward


def test_sampling_reads_each_prompt_once_and_never_the_last_token():
  prompt = np.ones((2, 4), int)
  completion = np.array([[1, 1, 1], [1, 0, 0]])
  batch = dataclasses.replace(
    BATCH, prompt_mask=prompt, completion_mask=completion
  )
  first = model_flops.count(STUDENT, np.array([4]), 1)
  # The first sequence makes two decode steps, whose tokens see 5 and 6.
  rest = model_flops.count(STUDENT, np.array([6]), 2, np.array([4]))
  found = step_work.rollout_flops(STUDENT, batch, group_size=2)
  assert found == first.forward + rest.forward
