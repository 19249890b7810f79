"""Values of a configuration tree that follow from others until they are set."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections.config_dict import FieldReference


class _Operation(NamedTuple):
  """What FieldReference calls so: a function of its value, and arguments."""

  fn: Callable[..., Any]
  args: tuple[FieldReference, ...]


def reference(
  kind: type, fn: Callable[..., Any], *values: FieldReference
) -> FieldReference:
  """A value that is fn(*values) whenever it is read, until it is set.

  FieldReference itself knows arithmetic alone.

  Args:
    kind: type of the value.
    fn: of what `values` are at that time.
    *values: references of the same tree.
  """
  operation = _Operation(lambda _, *args: fn(*args), values)
  return FieldReference(kind(), op=operation)
