"""How a parameter is laid out in a Hugging Face file."""

import dataclasses
import math

import numpy as np

Path = tuple[str, ...]  # where a parameter stands in the nested dictionary


@dataclasses.dataclass(frozen=True)
class Layout:
  """How one parameter is called and laid out in a Hugging Face file.

  Attributes:
    name: its name there; `{}` stands for the layer where there is one each.
    num_inputs: leading axes (without L) that the projection sums over; None
      for what is no projection and stands there as it stands here.
  """

  name: str
  num_inputs: int | None = None

  @property
  def is_stacked(self) -> bool:
    return "{}" in self.name

  def names(self, shape: tuple[int, ...]) -> list[str]:
    """The tensors of a parameter of this shape, in the order of layers."""
    if not self.is_stacked:
      return [self.name]
    return [self.name.format(layer) for layer in range(shape[0])]

  def theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of each tensor of a parameter of this shape."""
    shape = tuple(shape[1:] if self.is_stacked else shape)
    if self.num_inputs is None:
      return shape
    inputs, outputs = shape[: self.num_inputs], shape[self.num_inputs :]
    return math.prod(outputs), math.prod(inputs)

  def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of the file as one layer of ours, whose shape is given."""
    return tensor if self.num_inputs is None else tensor.T.reshape(shape)

  def write(self, layer: np.ndarray) -> np.ndarray:
    """One layer of ours as a tensor of the file, contiguous."""
    if self.num_inputs is not None:
      layer = layer.reshape(math.prod(layer.shape[: self.num_inputs]), -1).T
    # safetensors writes a transposed view's memory in the wrong order.
    return np.ascontiguousarray(layer)
