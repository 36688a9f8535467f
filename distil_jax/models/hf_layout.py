"""Layout of parameters in Hugging Face files."""

import dataclasses
import math

import numpy as np

# Keys that lead to a parameter in the nested dictionary.
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Describes one parameter in a Hugging Face file.

  Attributes:
    name: Name of its tensor; `{}` stands for the number of the layer, if each
      layer has a tensor, and a second `{}` for that of the expert.
    num_inputs: Number of leading axes (without layers and experts) that the
      projection sums over; None for a parameter that is no projection.
    is_flat: True if a parameter that is no projection has one axis in the file,
      whatever number it has here.
  """

  name: str
  num_inputs: int | None = None
  is_flat: bool = False

  @property
  def num_stacked(self) -> int:
    """The number of leading axes for which the file has separate tensors."""
    return self.name.count("{}")

  def names(self, shape: tuple[int, ...]) -> list[str]:
    """Returns the names of a parameter's tensors, in the order of layers."""
    places = np.ndindex(*shape[: self.num_stacked])
    return [self.name.format(*place) for place in places]

  def theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of each tensor of a parameter of this shape."""
    shape = tuple(shape[self.num_stacked :])
    if self.num_inputs is None:
      return (math.prod(shape),) if self.is_flat else shape
    inputs, outputs = shape[: self.num_inputs], shape[self.num_inputs :]
    return math.prod(outputs), math.prod(inputs)

  def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Converts a tensor of the file into one layer of the given shape."""
    return (tensor if self.num_inputs is None else tensor.T).reshape(shape)

  def write(self, layer: np.ndarray) -> np.ndarray:
    """Converts one layer into a contiguous tensor of the file."""
    if self.num_inputs is not None:
      layer = layer.reshape(math.prod(layer.shape[: self.num_inputs]), -1).T
    elif self.is_flat:
      layer = layer.reshape(-1)
    # safetensors writes the memory of a transposed view in the wrong order.
    return np.ascontiguousarray(layer)
