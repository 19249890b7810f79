"""Which of several runs are one configuration with different seeds."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unifluid_jax.evals.report.data import Found, Row

# Neither changes what is trained: the seed is what intervals are over.
_FREE = ("seed", "name")


class Run(NamedTuple):
  """What is on disk of one run."""

  workdir: str
  step: int  # that is compared
  train: Sequence[Row]
  found: Found
  config: Mapping[str, Any]  # leaves by path; empty if no checkpoint is left


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
  """Runs that differ in their seed alone stand together, in order.

  Two runs of one seed are no independent draws: the second one begins a group
  of its own, as does a run whose configuration is not known.
  """
  groups: list[list[Run]] = []
  for run in runs:
    for group in groups:
      if _fits(run, group):
        group.append(run)
        break
    else:
      groups.append([run])
  return groups


def _fits(run: Run, group: Sequence[Run]) -> bool:
  first = group[0]
  return (
    bool(run.config)
    and run.step == first.step
    and _free_of_seed(run.config) == _free_of_seed(first.config)
    and run.config.get("seed") not in [r.config.get("seed") for r in group]
  )


def _free_of_seed(config: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in config.items() if key not in _FREE}


def run_names(workdirs: Sequence[str]) -> list[str]:
  """What is different of several paths: the last folders, or all of them."""
  short = [os.path.basename(os.path.normpath(path)) for path in workdirs]
  return short if len(set(short)) == len(short) else list(workdirs)


def group_names(groups: Sequence[Sequence[str]]) -> list[str]:
  """A name for each group: what its runs' names begin with, if that tells.

  Args:
    groups: names of the runs of each group.
  """
  found = [
    names[0] if len(names) == 1 else _stem(names) or names[0]
    for names in groups
  ]
  if len(set(found)) < len(found):
    return [names[0] for names in groups]
  return found


def _stem(names: Sequence[str]) -> str:
  """shapes_seed0 and shapes_seed1 are shapes."""
  start = os.path.commonprefix(list(names))
  return re.sub(r"[-_/.=]*(seed)?[-_/.=0-9]*$", "", start)
