"""Raw files of questions about photographs as examples.

Every reader takes the data set's folder and a split. The layouts are those
in which the sets are published (big_vision datasets/* read the same); where
images live elsewhere, link their folder. Questions and answers come as
written: casing is the business of the task's row in `tasks`.
"""

import os
from typing import Any

from unifluid_jax.data import images, json_files
from unifluid_jax.data.records import BadRecord
from unifluid_jax.data.transfers.files import (
  Example,
  Folder,
  Root,
  member,
  pairs,
  strings,
)


def okvqa(root: Root, split: str) -> list[Example]:
  """OK-VQA: train, val; ten answers a question, as corrected (not raw).

  Files: OpenEnded_mscoco_{split}2014_questions.json,
  mscoco_{split}2014_annotations.json; {split}2014/ with COCO's images.

  Raises:
    FileNotFoundError: a file, or the first image, is missing.
    ValueError: a file of another layout, a question without answers.
  """
  folder = Folder(root, "OKVQA")
  year = folder.split(split, "train", "val") + "2014"
  file, content = folder.json(f"OpenEnded_mscoco_{year}_questions.json")
  noted, notes = folder.json(f"mscoco_{year}_annotations.json")
  answers = {
    e.id: e.answers
    for e in folder.examples(
      noted,
      member(noted, notes, "annotations"),
      lambda a: Example(
        str(a["question_id"]), (), "", tuple(x["answer"] for x in a["answers"])
      ),
    )
  }

  def build(entry: Any) -> Example:
    key = str(entry["question_id"])
    image = f"COCO_{year}_{int(entry['image_id']):012d}.jpg"
    return Example(
      key, (folder.path(year, image),), entry["question"], answers[key]
    )

  return folder.examples(file, member(file, content, "questions"), build)


def aokvqa(root: Root, split: str) -> list[Example]:
  """A-OKVQA: train, val, and test without answers.

  Files: aokvqa_v1p0_{split}.json; {split}2017/ with COCO's images. Serves
  both the direct answers and the multiple choice.

  Raises:
    FileNotFoundError, ValueError: as `okvqa`.
  """
  folder = Folder(root, "AOKVQA")
  folder.split(split, "train", "val", "test")
  file, content = folder.json(f"aokvqa_v1p0_{split}.json")
  hidden = split == "test"

  def build(entry: Any) -> Example:
    image = f"{int(entry['image_id']):012d}.jpg"
    return Example(
      entry["question_id"],
      (folder.path(f"{split}2017", image),),
      entry["question"],
      () if hidden else strings(entry["direct_answers"]),
      strings(entry["choices"]),
      -1 if hidden else int(entry["correct_choice_idx"]),
    )

  return folder.examples(file, content, build)


def gqa(root: Root, split: str) -> list[Example]:
  """GQA: train_balanced, val_balanced, testdev_balanced and the like.

  Files: {split}_questions.json; images/.

  Raises:
    FileNotFoundError, ValueError: as `okvqa`.
  """
  folder = Folder(root, "GQA")
  name = f"{split}_questions.json"
  file, content = folder.json(name, f"questions1.2/{name}")

  def build(item: tuple[str, Any]) -> Example:
    key, entry = item
    image = folder.path("images", f"{entry['imageId']}.jpg")
    answers = (entry["answer"],) if "answer" in entry else ()
    return Example(key, (image,), entry["question"], answers)

  return folder.examples(file, pairs(file, content), build)


def nlvr2(root: Root, split: str) -> list[Example]:
  """NLVR2's pairs of photographs: train, dev, test1.

  Files: {split}.json (or data/{split}.json), one object a line. The images of
  "dev-3-1-0" are dev-3-1-img0.png and -img1.png, in images/{split}/ or
  {split}/; below that, in the folder an entry's "directory" names, if it has
  one, as training entries do. The question is the sentence.

  Differs: big_vision publishes no reader of this set; where the images lie
  follows the set's own release and could not be checked against it.

  Raises:
    FileNotFoundError, ValueError: as `okvqa`.
  """
  folder = Folder(root, "NLVR2")
  folder.split(split, "train", "dev", "test1")
  name = f"{split}.json"
  file, lines = folder.lines(name, f"data/{name}")
  base = folder.find(f"images/{split}", split)

  def build(line: str) -> Example:
    entry = json_files.parse(line)
    stem = entry["identifier"].rpartition("-")[0]
    # Only the training images are spread over numbered folders.
    below = str(entry.get("directory", ""))
    pair = tuple(
      os.path.join(base, below, f"{stem}-img{i}.png") for i in range(2)
    )
    return Example(
      entry["identifier"], pair, entry["sentence"], (entry["label"],)
    )

  return folder.examples(file, lines, build)


def vizwiz(root: Root, split: str) -> list[Example]:
  """VizWiz VQA: train, val, and test without answers; blank answers drop out.

  Files: annotations/{split}.json; {split}/ with the images. The id is the
  number in the image's name.

  Raises:
    FileNotFoundError, ValueError: as `okvqa`.
  """
  folder = Folder(root, "VizWizVQA")
  folder.split(split, "train", "val", "test")
  name = f"{split}.json"
  file, content = folder.json(f"annotations/{name}", f"Annotations/{name}")

  def build(entry: Any) -> Example:
    given = () if split == "test" else entry["answers"]
    stem = os.path.splitext(entry["image"])[0]
    return Example(
      str(int(stem.rpartition("_")[2])),
      (folder.path(split, entry["image"]),),
      entry["question"],
      tuple(a["answer"] for a in given if a["answer"]),
    )

  return folder.examples(file, content, build)


def tallyqa(root: Root, split: str) -> list[Example]:
  """TallyQA: train, test; the test's kinds are "simple" and "complex".

  Files: {split}.json; VG_100K/, VG_100K_2/, train2014/, val2014/.

  Raises:
    FileNotFoundError, ValueError: as `okvqa`.
  """
  folder = Folder(root, "TallyQA")
  folder.split(split, "train", "test")
  file, content = folder.json(f"{split}.json")

  def build(entry: Any) -> Example:
    kind = ""
    if split == "test":
      kind = "simple" if entry["issimple"] else "complex"
    return Example(
      f"{entry['image_id']}/{entry['question_id']}",
      (folder.path(entry["image"]),),
      entry["question"],
      (str(int(entry["answer"])),),
      kind=kind,
    )

  return folder.examples(file, content, build)


def countbench(root: Root, split: str) -> list[Example]:
  """CountBenchQA, whose one split is "test".

  Files: countbench_paired_questions.json (big_vision's), and the one parquet
  file of CountBench here or in data/; question i belongs to row i. Rows
  without an image and images of one channel drop out, as in big_vision.

  Raises:
    FileNotFoundError, ValueError: as `okvqa`; files of different lengths.
  """
  import pyarrow.parquet  # slow to load, and no other reader needs it

  folder = Folder(root, "CountBenchQA")
  folder.split(split, "test")
  file, questions = folder.json("countbench_paired_questions.json")
  tables = sorted(folder.root.glob("*.parquet"))
  tables = tables or sorted(folder.root.glob("data/*.parquet"))
  if len(tables) != 1:
    raise FileNotFoundError(
      f"{os.fspath(folder.root)} holds {len(tables)} parquet files: put "
      "CountBench's one there"
    )
  table = os.fspath(tables[0])
  try:
    columns = pyarrow.parquet.read_table(table, columns=["image", "number"])
  except (OSError, pyarrow.ArrowException, ValueError) as error:
    raise ValueError(
      f"{table} has no image and number columns ({error}): download it again"
    ) from error
  if not isinstance(questions, list):
    raise ValueError(f"{file} holds no list of questions: download it again")
  if len(questions) != columns.num_rows:
    raise ValueError(
      f"{file} has {len(questions)} questions, {table} {columns.num_rows} "
      "rows: they must be of one release"
    )

  def build(item: tuple[int, Any]) -> Example | None:
    i, row = item
    data = (row["image"] or {}).get("bytes")
    if not data or _is_grey(data):
      return None
    answer = str(int(row["number"]))
    return Example(str(i), (data,), questions[i]["question"], (answer,))

  return folder.examples(table, enumerate(columns.to_pylist()), build)


def _is_grey(data: bytes) -> bool:
  """Whether an image has one channel; broken ones are another's business."""
  try:
    return images.channels(data) == 1
  except BadRecord:
    return False
