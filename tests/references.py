"""Objectives and statistics with their settings as keywords, for tests."""

import dataclasses

import jax

from distil_jax import objectives
from distil_jax.ops import fused_statistics
from distil_jax.ops.divergences import Divergence
from distil_jax.ops.token_statistics import DenseTeacher


def _split(kind, keywords):
  """Returns a record of the settings among keywords, and the others."""
  names = {field.name for field in dataclasses.fields(kind)}
  settings = {k: v for k, v in keywords.items() if k in names}
  others = {k: v for k, v in keywords.items() if k not in names}
  return kind(**settings), others


def distil(*arrays, **keywords):
  settings, others = _split(objectives.DistilSettings, keywords)
  return objectives.distil(*arrays, settings, **others)


def sdpo(*arrays, **keywords):
  settings, others = _split(objectives.SDPOSettings, keywords)
  return objectives.sdpo(*arrays, settings, **others)


def opsd(*arrays, **keywords):
  settings, others = _split(objectives.OPSDSettings, keywords)
  return objectives.opsd(*arrays, settings, **others)


def minillm(*arrays, **keywords):
  settings, others = _split(objectives.MiniLLMSettings, keywords)
  return objectives.minillm(*arrays, settings, **others)


def grpo(*arrays, **keywords):
  settings, others = _split(objectives.GRPOSettings, keywords)
  return objectives.grpo(*arrays, settings, **others)


def score_weights(costs, mask, **keywords):
  settings, others = _split(objectives.CreditSettings, keywords)
  return objectives.score_weights(costs, mask, settings, **others)


def score_weights_before(costs, mask, later, **keywords):
  settings = objectives.CreditSettings(**keywords)
  return objectives.score_weights_before(costs, mask, later, settings)


def token_statistics(
  student_hidden,
  student_unembedding,
  teacher_hidden,
  teacher_unembedding,
  token_ids,
  *,
  divergence="forward_cross_entropy",
  temperature=None,
  mask=None,
  chunk_size=None,
  layout=None,
):
  """Statistics of `[B, T]` tokens, or of `[N]` tokens in a row."""
  if isinstance(divergence, str):
    divergence = Divergence(divergence)
  if temperature is not None:
    divergence = dataclasses.replace(divergence, temperature=temperature)
  arrays = (student_hidden, teacher_hidden, token_ids)
  if student_hidden.ndim == 2:
    arrays = tuple(x[None] for x in arrays)
    mask = None if mask is None else mask[None]
  student, teacher, ids = arrays
  source = fused_statistics.compared(
    student,
    student_unembedding,
    DenseTeacher((teacher,), (teacher_unembedding,)),
    ids,
    divergence,
    mask,
  )
  found = source.tiled(chunk_size, layout).statistics()
  if student_hidden.ndim == 2:
    found = jax.tree.map(lambda x: x[0], found)
  return found
