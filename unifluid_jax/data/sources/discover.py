"""format="auto": what a folder or file holds, and so how it is read.

Looked for at the path itself, then, where it holds no lists and no shards, in
its subfolder for the split (train, val, ...):

  dataset_dict.json, state.json       arrow: `datasets.save_to_disk`
  dataset_info.json, features.json    array_record: TensorFlow Datasets
  metadata.jsonl, metadata.csv        imagefolder
  .json, .jsonl, annotations/*.json   coco, llava, sharegpt, jsonl, table, by
                                      how they begin
  .csv, .tsv                          table, with columns of images and texts
  .tar                                webdataset
  .parquet, data/*.parquet            parquet, hq_edit, ultra_edit, by columns
  images with .txt beside them        captions_txt
  subfolders with images              class_folders

Two of these are refused, naming both, with one exception: captions.jsonl, this
package's own, is what its folder is about. Of files whose names tell splits
those of the wanted split count; a file that tells none is for training, or in
the subfolder of a split for that one.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from unifluid_jax.core import files
from unifluid_jax.core.config import DataConfig, SourceConfig
from unifluid_jax.data.sources import folders, shards, sniff, tables

OWN = "captions.jsonl"
_SPLITS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "val", "dev"),
  "test": ("test", "testing"),
}
_NOTES = "annotations"  # the folder of COCO's lists
_LOOKED = 200  # images whose texts are looked for
_LISTS = (".json", ".jsonl", ".csv", ".tsv")


class Found(NamedTuple):
  """One way to read what lies at a path."""

  format: str
  path: str  # as data.train.NAME.path, but whole
  why: str  # what says so, for people
  columns: sniff.Columns = sniff.Columns()
  image: str = ""  # the first that a list names


def resolved(config: SourceConfig, root: str, key: str) -> SourceConfig:
  """The same source with its format, path and columns.

  Args:
    config: whose format is "auto".
    root: config.data.root.
    key: the source's place in the configuration, for messages.

  Raises:
    FileNotFoundError: nothing there, or not of this split.
    ValueError: nothing that is known, or several things.
  """
  found = find(config, root, key)
  names = {k: v for k, v in found.columns._asdict().items() if v}
  return dataclasses.replace(
    config, format=found.format, path=os.path.relpath(found.path, root or "."),
    **names,
  )  # fmt: skip


def lines(config: DataConfig) -> list[str]:
  """What was found, a line per training source whose format is "auto"."""
  said = []
  for name, source in config.train.items():
    if source.format == "auto" and source.weight:
      key = f"data.train.{name}"
      said.append(f"{key}: {describe(find(source, config.root, key))}")
  return said


def describe(found: Found) -> str:
  """In one line."""
  names = [f"{k} {v!r}" for k, v in found.columns._asdict().items() if v]
  columns = f"; columns: {', '.join(names)}" if names else ""
  return f"{found.format} at {found.path}: {found.why}{columns}"


def find(config: SourceConfig, root: str, key: str) -> Found:
  """What lies at a source's path; see `resolved`."""
  path = config.path.replace("{split}", config.split)
  full = os.path.normpath(os.path.join(root, path))
  where = f"{full!r} ({key}.path={config.path!r}, data.root={root!r})"
  files.local(full, 'data of format="auto"', f"{key}.format")
  if not path or "\0" in path or not os.path.exists(full):
    raise FileNotFoundError(
      f"no data at {where}: change them, or prepare the data set first"
    )
  own = config.split == "train" or _is_split(full, config.split)
  found, folder = _known(full, config, key, own), full
  if not found and (inner := _split_folders(full)):
    folder = _one_folder(full, inner, config.split, key)
    found = _known(folder, config, key, True) if folder else []
  ours = [f for f in found if os.path.basename(f.path) == OWN]
  if os.path.isdir(folder) and not ours:
    found += _texts_beside(folder)
    found = found or _classes(folder)
  if config.split != "train" and folder == full:
    found = [f for f in found if _tells_split(f, full, config.split)]
  if not found and (config.split != "train" or not folder):
    raise FileNotFoundError(f"no split {config.split!r} is told at {where}")
  if not found:
    raise ValueError(_nothing(where, full, key))
  if len(found) > 1 and not ours:
    ways = "; ".join(f"{f.format} ({f.why})" for f in found[:3])
    raise ValueError(
      f"{where} can be read in {len(found)} ways: {ways}: name one by "
      f"{key}.format and {key}.path"
    )
  return _with_images((ours or found)[0], full, config.split)


def evaluation_split(root: str, path: str, **columns: str) -> str:
  """The split to evaluate on: validation, else test, else train itself.

  One that is named but cannot be read, by the columns of training (a test set
  whose texts were left out), is passed over.
  """
  for split in ("validation", "test"):
    config = SourceConfig("auto", path, split, **columns)
    try:
      find(config, root, "data.eval")
    except (FileNotFoundError, ValueError):
      continue
    return split
  return "train"


def _tells_split(found: Found, path: str, split: str) -> bool:
  """Whether what was found at a path is that split, and not the whole set."""
  if os.path.isfile(path) or _is_split(path, split):
    return True
  whole = ("imagefolder", "captions_txt", "class_folders", "arrow")
  return found.format not in whole or found.path != path


def _is_split(path: str, split: str) -> bool:
  """Whether a path is named as a split and nothing else."""
  name = os.path.basename(path).lower().rstrip("0123456789")
  return name in _SPLITS.get(split, ())


def _with_images(found: Found, top: str, split: str) -> Found:
  """With the folder of the images that a list names.

  Raises:
    ValueError: they are nowhere, or in several folders.
  """
  if not found.image:
    return found
  if not os.path.isdir(top):
    top = os.path.dirname(top)
    top = os.path.dirname(top) if os.path.basename(top) == _NOTES else top
  inside = sniff.image_folders(found.path, top, found.image)
  if len(inside) > 1:  # train/1.png and val/1.png are two images
    split = split_of(_stem(found.path)) or split
    told = [f for f in inside if split_of(os.path.relpath(f, top)) == split]
    inside = told or inside
  if len(inside) > 1:
    raise ValueError(
      f"{found.path} names the image {found.image!r}, which lies in "
      f"{' and in '.join(inside[:3])}: name the folder, as LIST.json:FOLDER"
    )
  folder = os.path.relpath(inside[0], os.path.dirname(found.path))
  if folder == ".":
    return found
  return found._replace(
    path=f"{found.path}:{folder}", why=f"{found.why}, images in {folder}"
  )


def split_of(name: str) -> str:
  """The split that a name tells, by a word of it; empty for none."""
  told = set(re.split(r"[^a-z]+", name.lower()))
  for split, spelt in _SPLITS.items():
    if told & set(spelt):
      return split
  return ""


def _listed(folder: str) -> list[str]:
  return sorted(n for n in os.listdir(folder) if not n.startswith("."))


def _split_folders(folder: str) -> dict[str, list[str]]:
  """Split → subfolders that tell it; none where another holds images.

  A folder "train" among "car" and "plane" is a class; beside "val" it is a
  split, whatever else there is.
  """
  if not os.path.isdir(folder):
    return {}
  told = {n: split_of(n) for n in _folders(folder)}
  if len(_named_splits(folder)) < 2 and any(
    not s and _holds_images(os.path.join(folder, n)) for n, s in told.items()
  ):
    return {}
  return {
    split: [n for n, s in told.items() if s == split]
    for split in filter(None, told.values())
  }


def _named_splits(folder: str) -> list[str]:
  """Subfolders with images that are named as splits and nothing else."""
  return [
    n for n in _folders(folder)
    if any(_is_split(n, split) for split in _SPLITS)
    and _holds_images(os.path.join(folder, n))
  ]  # fmt: skip


def _one_folder(
  folder: str, inner: dict[str, list[str]], split: str, key: str
) -> str:
  """The subfolder of a split; empty for none.

  Of "train" and "train_masks" it is the first.

  Raises:
    ValueError: there are several.
  """
  names = inner.get(split, [])
  names = [n for n in names if _is_split(n, split)] or names
  if len(names) > 1:
    raise ValueError(
      f"{folder} holds {' and '.join(names[:3])} of split {split!r}: name one "
      f"by {key}.path"
    )
  return os.path.join(folder, names[0]) if names else ""


def _folders(folder: str) -> list[str]:
  return [n for n in _listed(folder) if os.path.isdir(os.path.join(folder, n))]


def _known(path: str, config: SourceConfig, key: str, own: bool) -> list[Found]:
  """All ways to read a file, or a folder by the lists and shards in it.

  Args:
    path: of it.
    config: of the source.
    key: of the source, for messages.
    own: whether files whose names tell no split are of the wanted one, where
      no name tells it.
  """
  if os.path.isfile(path):
    return _file(path, config)
  names, found = _listed(path), _data_set(path, config)
  metadata = [n for n in names if n in tables.METADATA]
  if metadata:
    splits = _named_splits(path)
    if len(splits) > 1:
      raise ValueError(
        f"{path} has {metadata[0]} above {' and '.join(splits[:3])}: split it, "
        f"a file in each, or set {key}.format=imagefolder to read all as one"
      )
    columns = sniff.metadata_columns(os.path.join(path, metadata[0]), config)
    found.append(
      Found("imagefolder", path, f"{' and '.join(metadata)} in it", columns)
    )
  notes = os.path.join(path, _NOTES)
  if os.path.isdir(notes):
    names += [f"{_NOTES}/{n}" for n in _listed(notes)
              if n.endswith(".json")]  # fmt: skip
  lists = [n for n in names if n.endswith(_LISTS)
           and n not in (*metadata, *sniff.DESCRIBING)]  # fmt: skip
  read = [f for n in lists for f in _file(os.path.join(path, n), config)]
  found += _of_split(read, config.split, own)
  for ending in (".tar", ".parquet"):
    found += _shards(path, ending, config, key, own)
  return found


def _file(path: str, config: SourceConfig) -> list[Found]:
  """How a file is read: one way, or none."""
  name = os.path.basename(path)
  if path.endswith(".tar"):
    return [Found("webdataset", path, name)]
  if path.endswith(".parquet"):
    form, columns = sniff.parquet_columns(path, config)
    return [Found(form, path, name, columns)] if form else []
  form, columns, image = sniff.list_of(path, config)
  return [Found(form, path, name, columns, image)] if form else []


def _of_split(found: Sequence[Found], split: str, own: bool) -> list[Found]:
  """Of lists those of a split; of COCO's, those of captions before others."""
  told = [(split_of(_stem(f.path)), f) for f in found]
  kept = [f for s, f in told if s == split]
  if not kept and own:
    kept = [f for s, f in told if not s]
  captions = [f for f in kept if "caption" in _stem(f.path).lower()]
  if captions and {f.format for f in kept} == {"coco"}:
    return captions
  return kept


def _stem(path: str) -> str:
  """The name of a file, without its ending."""
  return os.path.splitext(os.path.basename(path))[0]


def _data_set(path: str, config: SourceConfig) -> list[Found]:
  """What libraries of data sets wrote into a folder."""
  saved = sniff.saved_splits(path)
  if saved or os.path.isfile(os.path.join(path, "state.json")):
    names = {split_of(n): n for n in reversed(saved)}
    folder = os.path.join(path, names.get(config.split, config.split))
    folder = folder if saved else path
    columns = sniff.arrow_columns(folder, config)
    if not columns:
      return []
    why = "dataset_dict.json" if saved else "state.json"
    return [Found("arrow", folder, f"{why} in {path}", columns)]
  for depth in ("", "*", "*/*"):
    if prepared := sniff.prepared(path, depth):
      split = config.split.partition("[")[0]
      return [Found("array_record", folder, "dataset_info.json of TFDS")
              for folder, told in prepared if split in told]  # fmt: skip
  return []


def _shards(
  path: str, ending: str, config: SourceConfig, key: str, own: bool
) -> list[Found]:
  """How the files of an ending are read: one way, or none.

  Raises:
    ValueError: no pattern stands for those of the split.
  """
  folder, names = path, [n for n in _listed(path) if n.endswith(ending)]
  inner = os.path.join(path, "data")
  if not names and os.path.isdir(inner):
    folder, names = inner, [n for n in _listed(inner) if n.endswith(ending)]
  kept = [n for n in names if split_of(n) == config.split]
  if not kept and own:
    kept = [n for n in names if not split_of(n)]
  if not kept:
    return []
  pattern = folder
  if len(kept) < len(names):
    whole = [os.path.join(folder, n) for n in kept]
    patterns = [os.path.join(folder, f"*{word}*{ending}")
                for word in _SPLITS.get(config.split, ())]  # fmt: skip
    fitting = [p for p in patterns if shards.matching(p) == whole]
    if not fitting:
      other = next(n for n in names if n not in kept)
      raise ValueError(
        f"{folder} holds {kept[0]} of split {config.split!r} beside {other}: "
        f"name the files of the split by a pattern in {key}.path"
      )
    pattern = fitting[0]
  found = _file(os.path.join(folder, kept[0]), config)
  why = f"{len(kept)} {ending} file{'s' * (len(kept) > 1)} in {folder}"
  return [f._replace(path=pattern, why=why) for f in found]


def _texts_beside(path: str) -> list[Found]:
  """Images with a .txt of the same name: of the first images, any.

  Where most have none, and subfolders may be classes, both are named.
  """
  have = seen = 0
  for name in folders.below(path):
    stem, ending = os.path.splitext(os.path.join(path, name))
    if ending.lower() in folders.ENDINGS:
      seen, have = seen + 1, have + os.path.isfile(f"{stem}.txt")
      if seen == _LOOKED:
        break
  if not have:
    return []
  many = f"{have} of {seen} images looked at have a .txt beside them"
  found = [Found("captions_txt", path, many)]
  return found if 2 * have >= seen else found + _classes(path)


def _classes(path: str) -> list[Found]:
  """Subfolders with images, where none lies beside them."""
  classes = [
    n for n in _folders(path) if _holds_images(os.path.join(path, n))
  ]  # fmt: skip
  loose = any(n.lower().endswith(folders.ENDINGS) for n in _listed(path))
  if len(classes) < 2 or loose:
    return []
  why = f"{len(classes)} subfolders with images: {', '.join(classes[:3])}"
  return [Found("class_folders", path, why + ", ..." * (len(classes) > 3))]


def _holds_images(folder: str) -> bool:
  names = folders.below(folder)
  return any(n.lower().endswith(folders.ENDINGS) for n in names)


def _nothing(where: str, path: str, key: str) -> str:
  """The message where nothing is known, with what was looked for."""
  looked = (
    "looked for captions.jsonl, metadata.jsonl or .csv, COCO, LLaVA or "
    "ShareGPT .json, .csv or .tsv with columns of images and texts, .tar or "
    ".parquet shards, a folder saved by datasets or TFDS, .txt beside images, "
    "subfolders of images"
  )
  have = (_listed(path) if os.path.isdir(path) else [])[:5]
  seen = f"; it holds {', '.join(have)}" if have else ""
  return f"{where} holds no data set that is known: {looked}{seen}: " + (
    f"add one of these, or name {key}.format, .path, .image and .text"
  )
