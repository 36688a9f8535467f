"""Rounds lengths of sequences up to one of few sizes.

Each size is a compiled program. The sizes do not depend on a limit, so that a
looser limit neither costs tokens nor compiles other programs.
"""

# Below this many tokens a program for each size would cost more than padding.
SMALLEST = 32
# Sizes between a power of two and the next: at most a fifth is padding.
_PER_OCTAVE = 4


def bucket_size(length: int, limit: int, *, multiple: int = 1) -> int:
  """Returns the size that rows of a length are padded to.

  The sizes are 32, 40, 48, 56, 64, 80, 96, 112, 128, 160 and so on.

  Args:
    length: tokens of the longest row.
    limit: the largest size.
    multiple: divides every size below the limit, such as the number of devices
      that share a sequence.
  """
  size = SMALLEST
  if length > SMALLEST:
    # The largest power of two below the length.
    octave = 1 << ((length - 1).bit_length() - 1)
    size = _round_up(length, max(octave // _PER_OCTAVE, 1))
  return min(_round_up(size, multiple), limit)


def num_sizes(limit: int) -> int:
  """Returns how many sizes there are up to a limit."""
  return len({bucket_size(length, limit) for length in range(1, limit + 1)})


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
