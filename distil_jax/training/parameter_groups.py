"""Chooses parameters by name and by kind: weight decay, rates, matrices."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import optax.contrib

from distil_jax.models import decoder

# Axes along which a parameter holds several independent matrices.
_BATCH_AXES = ("layers", "experts")


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
  """Holds the settings of some parameters.

  Attributes:
    match: Names, or a regular expression that must match a whole name.
    learning_rate_scale: Factor of the learning rate.
    weight_decay: Replaces the weight decay of all other parameters. None keeps
      it.
  """

  match: str | Sequence[str]
  learning_rate_scale: float = 1.0
  weight_decay: float | None = None

  def has(self, name: str) -> bool:
    """Returns True if the group names this parameter."""
    if isinstance(self.match, str):
      return re.fullmatch(self.match, name) is not None
    return name in self.match


def names(params: decoder.Params) -> Any:
  """Returns the dotted name of each parameter, in the same tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: ".".join(str(part.key) for part in path), params
  )


def matrices(params: decoder.Params) -> Any:
  """Returns which axes of each parameter are a matrix's sides, as a tree.

  A matrix maps to or from the network's width; it may stand many times in one
  parameter, once for each layer. Norms, biases, embedding and unembedding have
  None.
  """
  return _by_axes(
    params, lambda axes: None if "vocab" in axes else _sides(axes)
  )


def weight_decays(
  params: decoder.Params,
  groups: Sequence[ParameterGroup],
  *,
  weight_decay: float,
  only_matrices: bool,
) -> Any:
  """Returns the weight decay of each parameter, in the same tree.

  Args:
    params: Parameters or their shapes.
    groups: The first that names a parameter has it.
    weight_decay: Of parameters without a group that sets another.
    only_matrices: True if it does not reach norms, biases and the embedding.
      The unembedding is a matrix here, unless it is the embedding too.
  """
  decays = _by_axes(
    params,
    lambda axes: _sides(axes) is not None and axes[0] != "vocab",
  )

  def decay(name: str, is_matrix: bool) -> float:
    group = _group_of(name, groups)
    if group is not None and group.weight_decay is not None:
      return group.weight_decay
    return weight_decay if is_matrix or not only_matrices else 0.0

  return jax.tree.map(decay, names(params), decays)


def learning_rate_scales(
  params: decoder.Params, groups: Sequence[ParameterGroup]
) -> Any:
  """Returns the factor of each parameter's learning rate, as a tree."""

  def scale(name: str) -> float:
    group = _group_of(name, groups)
    return 1.0 if group is None else group.learning_rate_scale

  return jax.tree.map(scale, names(params))


def unmatched(
  params: decoder.Params, groups: Sequence[ParameterGroup]
) -> tuple[int, str] | None:
  """Returns the first group, and what it names, that has no parameter.

  A group has none, too, if earlier groups have all that it names.

  Returns:
    The group's index, and the name or pattern; None if all are used.
  """
  found = jax.tree.leaves(names(params))
  for i, group in enumerate(groups):
    listed = [group.match] if isinstance(group.match, str) else group.match
    for match in listed:
      alone = dataclasses.replace(
        group, match=match if isinstance(group.match, str) else [match]
      )
      if not any(
        alone.has(name) and _group_of(name, groups) is group for name in found
      ):
        return i, match
  return None


def _group_of(
  name: str, groups: Sequence[ParameterGroup]
) -> ParameterGroup | None:
  return next((group for group in groups if group.has(name)), None)


def _by_axes(params: decoder.Params, function: Any) -> Any:
  return jax.tree.map(
    function,
    decoder.logical_axes(params),
    is_leaf=lambda axes: isinstance(axes, tuple),
  )


def _sides(axes: Any) -> optax.contrib.MuonDimensionNumbers | None:
  """Returns the input and output axes of a matrix, by its logical axes."""
  inner = [i for i, axis in enumerate(axes) if axis not in _BATCH_AXES]
  named = [axes[i] for i in inner]
  # The width, or the rank of an adapter, which is cut over no devices.
  small = [i for i in (0, -1) if named and named[i] in ("embed", None)]
  if not small or len(named) < 2:
    return None
  cut = -1 if small == [-1] else 1
  return optax.contrib.MuonDimensionNumbers(
    tuple(inner[:cut]), tuple(inner[cut:])
  )
