"""Makes the items of a sequence when they are asked for."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Generated(Sequence[T], Generic[T]):
  """A sequence whose items are made when they are indexed."""

  def __init__(self, make: Callable[[int], T], size: int):
    self._make = make
    self._size = size

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self._make(i) for i in range(*index.indices(self._size))]
    if not -self._size <= index < self._size:
      raise IndexError(index)
    return self._make(index % self._size)
