"""Raw files of the four captioning tasks as examples.

As in `photo_readers`: every reader takes the data set's folder and a split.
"""

import functools
from typing import Any

from unifluid_jax.data.transfers.files import (
  Box,
  Example,
  Folder,
  Root,
  grouped,
  member,
)

_RICO_HEIGHT = 2560  # of a screen in view-hierarchy units


def coco_karpathy(root: Root, split: str) -> list[Example]:
  """COCO captions in Karpathy's split: train, restval, val, test.

  Files: dataset_coco.json; train2014/ and val2014/ with COCO's images.

  Raises:
    FileNotFoundError, ValueError: as `photo_readers.okvqa`.
  """
  folder = Folder(root, "COCO captions")
  folder.split(split, "train", "restval", "val", "test")
  file, content = folder.json("dataset_coco.json")

  def build(entry: Any) -> Example | None:
    if entry["split"] != split:
      return None
    return Example(
      str(entry["cocoid"]),
      (folder.path(entry["filepath"], entry["filename"]),),
      answers=tuple(s["raw"].strip() for s in entry["sentences"]),
    )

  return folder.examples(file, member(file, content, "images"), build)


def textcaps(root: Root, split: str) -> list[Example]:
  """TextCaps: train, val, and test without captions.

  Files: TextCaps_0.1_{split}.json; train_images/ (of val too), test_images/.

  Raises:
    FileNotFoundError, ValueError: as `photo_readers.okvqa`.
  """
  folder = Folder(root, "TextCaps")
  folder.split(split, "train", "val", "test")
  file, content = folder.json(f"TextCaps_0.1_{split}.json")
  images = "test_images" if split == "test" else "train_images"
  rows = member(file, content, "data")
  if split == "test":
    captions = {i: [] for i in grouped(file, rows, "image_id", "image_id")}
  else:
    captions = grouped(file, rows, "image_id", "caption_str")

  def build(item: tuple[str, list[str]]) -> Example:
    image_id, given = item
    image = folder.path(images, f"{image_id}.jpg")
    return Example(image_id, (image,), answers=tuple(given))

  return folder.examples(file, captions.items(), build)


def screen2words(root: Root, split: str) -> list[Example]:
  """Screen2Words on RICO's screens: train, dev, test.

  Files: screen_summaries.csv; split/{split}_screens.txt; RICO's combined/.

  Raises:
    FileNotFoundError, ValueError: as `photo_readers.okvqa`.
  """
  folder = Folder(root, "Screen2Words")
  folder.split(split, "train", "dev", "test")
  file, rows = folder.rows("screen_summaries.csv", "screenId", "summary")
  summaries = grouped(file, rows, "screenId", "summary")
  listed, screens = folder.lines(f"split/{split}_screens.txt")

  def build(screen: str) -> Example:
    image = folder.path("combined", f"{int(screen)}.jpg")
    return Example(
      str(int(screen)), (image,), answers=tuple(summaries[str(int(screen))])
    )

  return folder.examples(listed, screens, build)


def widgetcap(root: Root, split: str) -> list[Example]:
  """Widget Captioning on RICO's screens: train, dev, test.

  Files: widget_captions.csv; {split}.txt; RICO's combined/ with images and
  view hierarchies. The box is in units of the image's height, whatever its
  resolution: a RICO screen is 2560 units high.

  Raises:
    FileNotFoundError, ValueError: as `photo_readers.okvqa`; a
      node that its screen lacks.
  """
  folder = Folder(root, "WidgetCap")
  folder.split(split, "train", "dev", "test")
  columns = ("screenId", "nodeId", "captions")
  file, rows = folder.rows("widget_captions.csv", *columns)
  screens = frozenset(folder.lines(f"{split}.txt")[1])

  @functools.lru_cache(maxsize=16)  # rows of a screen stand together
  def tree(screen: str) -> Any:
    path, content = folder.json(f"combined/{screen}.json")
    return member(path, content, "activity", "root")

  def build(row: dict[str, str]) -> Example | None:
    screen, node = row["screenId"], row["nodeId"]
    if screen not in screens:
      return None
    return Example(
      f"{screen}_{node}",
      (folder.path("combined", f"{screen}.jpg"),),
      answers=tuple(row["captions"].split("|")),
      box=_widget(tree(screen), node),
    )

  return folder.examples(file, rows, build)


def _widget(root: Any, node: str) -> Box:
  """The box of a node whose path, as "0.2.1", begins at the root."""
  for index in node.split(".")[1:]:
    root = root["children"][int(index)]
  xmin, ymin, xmax, ymax = (v / _RICO_HEIGHT for v in root["bounds"])
  return ymin, xmin, ymax, xmax
