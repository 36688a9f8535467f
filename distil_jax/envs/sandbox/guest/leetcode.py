"""Gives programs the names that LeetCode gives them without an import.

They are among the built-in names of the program, so that its own names, and
Python's, come first.
"""

import array
import bisect
import builtins
import collections
import copy
import datetime
import functools
import heapq
import inspect
import itertools
import math
import operator
import random
import re
import string
import sys
import typing
from typing import Any

_MODULES = (array, bisect, collections, copy, datetime, functools, heapq)
_MODULES += (itertools, math, operator, random, re, string, sys, typing)
# All public names of these are known, the later ones before the earlier ones.
_OPENED = (typing, math, itertools, functools, heapq, bisect, collections)
# A list that a program has tied to a ring would have no end.
_MAX_NODES = 100_000


class ListNode:
  """A node of a linked list."""

  def __init__(self, val: Any = 0, next: Any = None):
    self.val = val
    self.next = next


class TreeNode:
  """A node of a binary tree."""

  def __init__(self, val: Any = 0, left: Any = None, right: Any = None):
    self.val = val
    self.left = left
    self.right = right


def builtin_names() -> dict[str, Any]:
  """Returns Python's built-in names, and those that LeetCode adds."""
  found: dict[str, Any] = {}
  for module in _OPENED:
    names = getattr(module, "__all__", None) or dir(module)
    public = [name for name in names if not name.startswith("_")]
    found |= {name: getattr(module, name) for name in public}
  found |= {module.__name__: module for module in _MODULES}
  found |= {"ListNode": ListNode, "TreeNode": TreeNode}
  # `pow` of Python takes three numbers, that of `math` does not.
  return found | vars(builtins)


def call(
  function: Any,
  args: list[Any],
  namespace: dict[str, Any],
  *,
  changes_argument: bool = False,
) -> Any:
  """Calls a function; its annotations say which lists are nodes.

  Args:
    function: A function, or a method of an object.
    args: Its arguments, where nodes are lists as on LeetCode.
    namespace: Names of the program, which may have node classes of its own.
    changes_argument: If True, the first argument is the result of a function
      that returns None.
  """
  kinds, returned = _annotations(function)
  kinds += [""] * (len(args) - len(kinds))
  pairs = zip(args, kinds, strict=False)  # Extra defaults have no argument.
  built = [_built(x, kind, namespace) for x, kind in pairs]
  value = function(*built)
  if value is None and changes_argument and built:
    # An empty list or tree has no node.
    is_empty = built[0] is None and args[0] == []
    return [] if is_empty else _unbuilt(built[0])
  # What changes its argument returns nothing, and has no list to show.
  is_node = "ListNode" in returned or "TreeNode" in returned
  if value is None and is_node and not _is_list(returned):
    return []
  return _unbuilt(value)


def _annotations(function: Any) -> tuple[list[str], str]:
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):
    return [], ""
  kinds = [_text(x.annotation) for x in signature.parameters.values()]
  return kinds, _text(signature.return_annotation)


def _text(annotation: Any) -> str:
  if annotation is inspect.Signature.empty:
    return ""
  return annotation if isinstance(annotation, str) else repr(annotation)


def _is_list(kind: str) -> bool:
  return re.search(r"[Ll]ist\[", kind) is not None


def _built(value: Any, kind: str, namespace: dict[str, Any]) -> Any:
  for name, build in (("ListNode", _linked), ("TreeNode", _tree)):
    if name in kind and isinstance(value, list):
      node = namespace.get(name) or globals()[name]
      if _is_list(kind):
        return [build(x, node) if isinstance(x, list) else x for x in value]
      return build(value, node)
  return value


def _linked(items: list[Any], node: Any) -> Any:
  head = None
  for item in reversed(items):
    made = node(item)
    made.next = head
    head = made
  return head


def _tree(items: list[Any], node: Any) -> Any:
  """Builds a tree from its levels, where None means that there is no node."""
  if not items or items[0] is None:
    return None
  root = node(items[0])
  waiting, rest = collections.deque([root]), iter(items[1:])
  while waiting:
    parent = waiting.popleft()
    for side in ("left", "right"):
      item = next(rest, None)
      child = None if item is None else node(item)
      setattr(parent, side, child)
      if child is not None:
        waiting.append(child)
  return root


def _unbuilt(value: Any) -> Any:
  if isinstance(value, list):
    return [_unbuilt(x) for x in value] if any(map(_is_node, value)) else value
  if not _is_node(value):
    return value
  if hasattr(value, "next"):
    items = []
    while value is not None:
      if len(items) == _MAX_NODES:
        raise ValueError(f"the linked list has more than {_MAX_NODES} nodes")
      items.append(value.val)
      value = value.next
    return items
  return _levels(value)


def _is_node(value: Any) -> bool:
  return type(value).__name__ in ("ListNode", "TreeNode") and (
    hasattr(value, "val")
  )


def _levels(root: Any) -> list[Any]:
  items: list[Any] = []
  waiting = collections.deque([root])
  while waiting:
    node = waiting.popleft()
    items.append(None if node is None else node.val)
    if len(items) > _MAX_NODES:
      raise ValueError(f"the tree has more than {_MAX_NODES} nodes")
    if node is not None:
      waiting += [node.left, node.right]
  while items and items[-1] is None:
    items.pop()
  return items
