"""Independent pieces of work: done here, or by the workers of a Ray cluster.

Ray Data, not Beam: Beam (2.77) wants older releases of protobuf, pyarrow and
python-dateutil than the other packages of the tested set.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Work = Callable[[Any], Any]
# Does the work for all pieces, in any order, and returns what became of each,
# in theirs; JSON. A worker elsewhere gets a pickled copy of the work, and may
# begin a piece again that was another's, lost meanwhile.
Each = Callable[[Work, Sequence[Any]], list[Any]]

LOCAL = "local"  # the address of a cluster that is started for the occasion


def here(work: Work, pieces: Sequence[Any]) -> list[Any]:
  """Does all pieces in this process; see `Each`."""
  return [work(piece) for piece in pieces]


@contextlib.contextmanager
def on_ray(address: str) -> Iterator[Each]:
  """Workers of a Ray cluster, as long as the context lasts.

  They need this package, and the disks that the work reads and writes.

  Args:
    address: HOST:PORT of a cluster, "auto" on one of its machines, or "local"
      for the cores of this machine.

  Raises:
    ValueError: Ray is not installed, or no cluster answers.
  """
  # Ray reports how it is used to its makers, unless told not to.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  try:
    import ray
    import ray.data
  except ImportError as error:
    raise ValueError(
      f'--ray={address} needs Ray: pip install -e ".[ray]"'
    ) from error
  try:
    with warnings.catch_warnings():
      # JAX warns of forks; Ray's are replaced by other programs at once.
      warnings.filterwarnings("ignore", r".*os\.fork\(\)", RuntimeWarning)
      ray.init(
        address=address, include_dashboard=False if address == LOCAL else None,
        logging_level=logging.ERROR, log_to_driver=False,
      )  # fmt: skip
  except (ConnectionError, RuntimeError) as error:
    raise ValueError(
      f"--ray={address}: no cluster answers: {error}; one that was started by "
      "`ray start` may ask for its token: set RAY_AUTH_MODE=token"
    ) from error
  ray.data.DataContext.get_current().enable_progress_bars = False
  logging.getLogger("ray.data").setLevel(logging.ERROR)
  try:
    yield _each
  finally:
    ray.shutdown()


def _each(work: Work, pieces: Sequence[Any]) -> list[Any]:
  """`Each`, on the cluster that this process is connected to."""
  import ray

  if not pieces:
    return []
  cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
  pool = ray.data.ActorPoolStrategy(size=min(len(pieces), cores))
  numbers = ray.data.range(len(pieces), override_num_blocks=len(pieces))
  arguments = (work, list(pieces))
  done = numbers.map(_Worker, fn_constructor_args=arguments, compute=pool)
  return _in_order(done.take_all())


def _in_order(done: Sequence[dict[str, Any]]) -> list[Any]:
  """What workers made of all pieces; the first of what they failed at."""
  ordered = sorted(done, key=lambda row: row["id"])
  for row in ordered:
    if row["error"]:
      raise ValueError(row["error"])
  return [json.loads(row["result"]) for row in ordered]


class _Worker:
  """Does pieces by their numbers; what users can mend comes back as text."""

  def __init__(self, work: Work, pieces: Sequence[Any]):
    self._work, self._pieces = work, pieces

  def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
    result, error = None, ""
    try:
      result = self._work(self._pieces[row["id"]])
    except (ValueError, OSError) as failed:
      error = f"{type(failed).__name__}: {failed}"
    return {"id": row["id"], "result": json.dumps(result), "error": error}
