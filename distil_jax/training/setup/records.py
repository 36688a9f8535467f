"""Translates config sections into the records that pure code takes.

Code that is compiled knows no config. Its records share field names with the
sections, so that a setting is passed on without being listed again.
"""

import dataclasses
from typing import Any, TypeVar

from distil_jax.config.base import Section

R = TypeVar("R")


def record_of(kind: type[R], section: Section, **others: Any) -> R:
  """Builds a record from the fields that it shares with a section.

  Args:
    kind: a dataclass.
    section: a section of a config.
    **others: the record's other fields; they win over the section's.
  """
  assert dataclasses.is_dataclass(kind)
  shared = {
    field.name: getattr(section, field.name)
    for field in dataclasses.fields(kind)
    if field.name in type(section).model_fields
  }
  return kind(**{**shared, **others})
