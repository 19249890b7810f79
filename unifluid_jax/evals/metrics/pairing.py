"""Predictions beside their references, refused unless the ids agree.

A score over the questions that happen to have an answer cannot be compared
with anything, so a missing, unknown or repeated id is an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Id = int | str
References = Mapping[Id, Sequence[str]] | Iterable[tuple[Id, Sequence[str]]]
Texts = Mapping[Id, str] | Iterable[tuple[Id, str]]

_NAMED = 10  # ids an error names


def paired(
  references: References, predictions: Texts
) -> dict[Id, tuple[tuple[str, ...], str]]:
  """Each id's references and its prediction.

  Args:
    references: id to its true texts, at least one each; as mapping or pairs.
    predictions: id to the predicted text, likewise. Ids match by their text:
      7 and "7" are the same.

  Returns:
    (references, prediction) by the ids of `references`, in their order.

  Raises:
    ValueError: no references, ids that are missing, unknown or given twice,
      and ids without a reference; the message names them.
  """
  theirs = by_text(references, "references")
  ours = by_text(predictions, "predictions")
  if not theirs:
    raise ValueError("no references: pass at least one")
  if missing := [i for k, (i, _) in theirs.items() if k not in ours]:
    raise ValueError(f"no prediction for ids {few(missing)}: predict them too")
  if unknown := [i for k, (i, _) in ours.items() if k not in theirs]:
    raise ValueError(
      f"predictions for unknown ids {few(unknown)}: score them against the "
      "split they were made on"
    )
  if loose := [i for i, refs in theirs.values() if isinstance(refs, str)]:
    raise ValueError(
      f"references of ids {few(loose)} are one string: pass a list"
    )
  if empty := [i for i, refs in theirs.values() if not refs]:
    raise ValueError(
      f"no reference for ids {few(empty)}: a split without answers is scored "
      "by its server"
    )
  return {i: (tuple(refs), ours[k][1]) for k, (i, refs) in theirs.items()}


def by_text(
  items: Mapping[Id, Any] | Iterable[tuple[Id, Any]], name: str
) -> dict[str, tuple[Id, Any]]:
  """(id, value) by the id's text.

  Args:
    items: values by id, as mapping or pairs.
    name: how an error calls them.

  Raises:
    ValueError: an id given twice; the message names it.
  """
  pairs = items.items() if isinstance(items, Mapping) else items
  result, twice = {}, []
  for key, value in pairs:
    if str(key) in result:
      twice.append(key)
    result[str(key)] = (key, value)
  if twice:
    raise ValueError(
      f"{name} hold ids more than once: {few(twice)}; keep one of each"
    )
  return result


def few(ids: Sequence) -> str:
  """The first ids and how many more there are."""
  more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
  return ", ".join(repr(i) for i in ids[:_NAMED]) + more
