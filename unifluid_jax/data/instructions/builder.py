"""Sets of dialogues that ask for images, written as ShareGPT's JSON."""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from unifluid_jax.data.instructions import few_shot, templates, written
from unifluid_jax.data.instructions.templates import Pools, Templates

TRAIN, HELD_OUT = "train.json", "held_out.json"
USED = "templates.json"
REQUESTS, REJECTED, AGAIN = "requests.jsonl", "rejected.jsonl", "again.jsonl"
_NAMED = 3  # skipped records that a summary names


def from_templates(
  source: Any, folder: pathlib.Path, used: Templates, seed: int
) -> str:
  """Joins every caption with a wording of a request and one of an answer.

  VARGPT's set of 1270K (arXiv 2501.12327 §4.2). Each image is asked for once;
  those that fall to held-out wordings are held out with them.

  Args:
    source: of `sources/source.py`.
    folder: new or without these files.
    used: the wordings.
    seed: of the choices; record i's depend on it and on i alone.

  Returns:
    What was done, for people.

  Raises:
    ValueError: files that exist, or no image with a caption.
  """
  check_new(folder, TRAIN, HELD_OUT, USED)
  every, skipped = (*used.prompts, *used.held_out), written.Skipped()
  with _both(folder) as (train, held_out):
    for image in written.captioned(source, folder, seed, skipped):
      rng = np.random.default_rng([seed, image.index, 1])
      asked = int(rng.integers(len(every)))
      answer = used.answers[int(rng.integers(len(used.answers)))]
      writer = train if asked < len(used.prompts) else held_out
      writer.add(
        written.drawn(
          templates.fill(every[asked], image.caption),
          templates.fill(answer, image.caption),
          image.image,
        )
      )
    if not train.count:
      raise ValueError(f"no dialogue to train on: {_skipped(skipped)}")
  _write_used(folder, used, seed)
  return (
    f"wrote {train.count:,} dialogues of {len(used.prompts)} requests and "
    f"{len(used.answers)} answers in {folder / TRAIN}; {held_out.count:,} of "
    f"{len(used.held_out)} held-out requests in {folder / HELD_OUT}"
    f"{_skipped(skipped, '; ')}"
  )


def write_requests(
  source: Any, folder: pathlib.Path, pools: Pools, used: Templates, seed: int
) -> str:
  """Writes what a language model is asked, see `few_shot.requests`.

  Raises:
    ValueError: files that exist, or too few images.
  """
  check_new(folder, REQUESTS, USED)
  skipped = written.Skipped()
  found = list(written.captioned(source, folder, seed, skipped))
  rows = few_shot.requests(found, pools, used, seed)
  count = written.write_lines(folder / REQUESTS, rows)
  _write_used(folder, used, seed)
  return (
    f"wrote {count:,} requests in {folder / REQUESTS}{_skipped(skipped, '; ')}"
  )


def from_replies(
  folder: pathlib.Path, replies: str, overlap: float = few_shot.OVERLAP
) -> str:
  """Checks replies to the folder's requests and writes their dialogues.

  Beside them stand REJECTED, replies with what is wrong, and AGAIN, the
  requests that have no good reply; a second reading, of more replies,
  replaces all four files.

  Args:
    folder: where `write_requests` wrote.
    replies: file of JSON lines {"id": ..., "reply": text}.
    overlap: see `few_shot.check`.

  Raises:
    ValueError: no requests, lines that cannot be read, replies to other
      requests, or none that passes.
  """
  path = folder / REQUESTS
  if not path.is_file():
    raise ValueError(f"no {path}: make it with --form=requests first")
  asked = few_shot.read_lines(
    str(path), ("id", "image", "caption", "held_out", "messages")
  )
  found = few_shot.judge(
    asked, few_shot.read_lines(replies, ("id", "reply")), overlap
  )
  if not found.accepted:
    reason = found.rejected[0][1] if found.rejected else "there are none"
    raise ValueError(f"{replies}: no reply can be used: {reason}")
  with _both(folder) as (train, held_out):
    for row, said in found.accepted:
      writer = held_out if row["held_out"] else train
      writer.add(written.drawn(said.prompt, said.answer, row["image"]))
  rejected = ({"id": r["id"], "reason": why} for r, why in found.rejected)
  written.write_lines(folder / REJECTED, rejected)
  again = [*found.unanswered, *(row for row, _ in found.rejected)]
  written.write_lines(folder / AGAIN, again)
  return (
    f"wrote {train.count:,} dialogues in {folder / TRAIN}, {held_out.count:,} "
    f"held out in {folder / HELD_OUT}; {len(found.rejected):,} replies were "
    f"rejected, {len(found.unanswered):,} requests have none: {folder / AGAIN}"
  )


def check_new(folder: pathlib.Path, *names: str) -> None:
  """Raises ValueError if one of these files stands in a folder."""
  there = [name for name in names if (folder / name).exists()]
  if there:
    raise ValueError(
      f"{folder / there[0]} exists: delete it, or choose another --to"
    )


@contextlib.contextmanager
def _both(
  folder: pathlib.Path,
) -> Iterator[tuple[written.ListWriter, written.ListWriter]]:
  """The lists to train on and to evaluate with."""
  folder.mkdir(parents=True, exist_ok=True)
  with written.list_file(folder / TRAIN) as train:
    with written.list_file(folder / HELD_OUT) as held_out:
      yield train, held_out


def _write_used(folder: pathlib.Path, used: Templates, seed: int) -> None:
  """Which wordings there are, so that evaluations can tell them apart."""
  content = {"seed": seed, **used._asdict()}
  (folder / USED).write_text(json.dumps(content, indent=2) + "\n")


def _skipped(skipped: Sequence[str], before: str = "") -> str:
  """Records that were left out, if any."""
  if not skipped:
    return ""
  some: Iterable[str] = skipped[:_NAMED]
  return f"{before}{len(skipped):,} records were skipped: {'; '.join(some)}"
