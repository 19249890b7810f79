"""All transfer tasks' files in little: two examples a split, real images."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

ANSWERS = ("red", "blue")
CAPTIONS = (("a red cat", "one cat"), ("two blue dogs", "dogs of blue"))


def write(root, files):
  """Files by path: text as is, bytes, or anything else as JSON."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
      path.write_bytes(content)
    else:
      text = content if isinstance(content, str) else json.dumps(content)
      path.write_text(text)
  return root


def png(mode="RGB", color=0, size=(2, 3)):
  file = io.BytesIO()
  Image.new(mode, size, color).save(file, "PNG")
  return file.getvalue()


def relative(root, example):
  """The example's images below the folder of its files."""
  prefix = str(root) + "/"
  assert all(i.startswith(prefix) for i in example.images)
  return tuple(i.removeprefix(prefix) for i in example.images)


def image(i):
  """Red or blue, wider than high; readers do not look at the extension."""
  return png(color=ANSWERS[i % 2], size=(12, 8))


def images(*names):
  return {name: image(i) for i, name in enumerate(names)}


def make(root):
  """Writes every set in its row's folder."""
  for name, files in SETS.items():
    write(root / name, files() if callable(files) else files)
  table = {
    "image": [{"bytes": image(i), "path": None} for i in range(2)],
    "number": [1, 2],
    "text": ["one", "two"],
  }
  file = root / "countbenchqa" / "train-0.parquet"
  pyarrow.parquet.write_table(pa.table(table), file)
  return root


def coco():
  splits = ("train", "restval", "val")
  entries = [
    {"filepath": "val2014", "filename": f"{s}{i}.jpg", "split": s,
     "cocoid": 10 * k + i, "sentences": [{"raw": c} for c in CAPTIONS[i]]}
    for k, s in enumerate(splits) for i in range(2)
  ]  # fmt: skip
  names = [f"val2014/{e['filename']}" for e in entries]
  return {"dataset_coco.json": {"images": entries}, **images(*names)}


def textcaps():
  files = images("train_images/0.jpg", "train_images/1.jpg")
  rows = [{"image_id": str(i), "image_name": str(i), "caption_str": c.upper()}
          for i in range(2) for c in CAPTIONS[i]]  # fmt: skip
  for split in ("train", "val"):
    files[f"TextCaps_0.1_{split}.json"] = {"data": rows}
  return files


def screens(splits, listing):
  """RICO's screens of each split, and the files that list them."""
  files, ids = {}, []
  for k, split in enumerate(splits):
    mine = [10 * k + i for i in range(2)]
    ids += [(n, i) for i, n in enumerate(mine)]
    files[listing.format(split)] = "".join(f"{n}\n" for n in mine)
    files |= images(*(f"combined/{n}.jpg" for n in mine))
  return files, ids


def screen2words():
  files, ids = screens(("train", "dev", "test"), "split/{}_screens.txt")
  rows = [f"{n},{c}\n" for n, i in ids for c in CAPTIONS[i]]
  files["screen_summaries.csv"] = "screenId,summary\n" + "".join(rows)
  return files


def widgetcap():
  files, ids = screens(("train", "dev", "test"), "{}.txt")
  rows = [f"{n},0.0,{'|'.join(CAPTIONS[i])}\n" for n, i in ids]
  files["widget_captions.csv"] = "screenId,nodeId,captions\n" + "".join(rows)
  leaf = {"bounds": [640, 640, 1920, 1920]}
  for n, _ in ids:
    root = {"activity": {"root": {"children": [leaf]}}}
    files[f"combined/{n}.json"] = root
  return files


def okvqa():
  files = {}
  for split in ("train2014", "val2014"):
    ids = range(2)
    files |= images(*(f"{split}/COCO_{split}_{i:012d}.jpg" for i in ids))
    asked = [{"question_id": i, "image_id": i, "question": "Colour?"}
             for i in ids]  # fmt: skip
    notes = [{"question_id": i, "answers": [{"answer": ANSWERS[i]}] * 10}
             for i in ids]  # fmt: skip
    name = f"OpenEnded_mscoco_{split}_questions.json"
    files[name] = {"questions": asked}
    files[f"mscoco_{split}_annotations.json"] = {"annotations": notes}
  return files


def aokvqa():
  files = {}
  for split in ("train", "val"):
    files |= images(*(f"{split}2017/{i:012d}.jpg" for i in range(2)))
    files[f"aokvqa_v1p0_{split}.json"] = [
      {"question_id": f"{split}{i}", "image_id": i, "question": "Colour?",
       "choices": [*ANSWERS, "green"], "correct_choice_idx": i,
       "direct_answers": [ANSWERS[i]] * 10} for i in range(2)
    ]  # fmt: skip
  return files


def gqa():
  files = images("images/0.jpg", "images/1.jpg")
  asked = {f"0{i}": {"imageId": str(i), "question": "Colour?", "answer": a}
           for i, a in enumerate(ANSWERS)}  # fmt: skip
  for split in ("train_balanced", "val_balanced", "testdev_balanced"):
    files[f"{split}_questions.json"] = asked
  return files


def nlvr2():
  files = {}
  for split in ("train", "dev", "test1"):
    rows = [{"identifier": f"{split}-{i}-0-0", "sentence": "Two dogs.",
             "label": label}
            for i, label in enumerate(["True", "False"])]  # fmt: skip
    files[f"{split}.json"] = "".join(json.dumps(r) + "\n" for r in rows)
    for i in range(2):
      files |= images(*(f"{split}/{split}-{i}-0-img{k}.png" for k in range(2)))
  return files


def vizwiz():
  files = {}
  for split in ("train", "val"):
    names = [f"VizWiz_{split}_{i:08d}.jpg" for i in range(2)]
    files |= images(*(f"{split}/{name}" for name in names))
    files[f"annotations/{split}.json"] = [
      {"image": name, "question": "Colour?", "answers": [{"answer": a}] * 10}
      for name, a in zip(names, ANSWERS, strict=True)
    ]
  return files


def tallyqa():
  rows = [{"image": f"VG_100K/{i}.jpg", "image_id": i, "question_id": i,
           "question": "How many?", "answer": i + 1, "issimple": i < 2}
          for i in range(4)]  # fmt: skip
  names = [row["image"] for row in rows]
  return {"train.json": rows, "test.json": rows, **images(*names)}


def ai2d():
  files = {"ai2d_test_ids.csv": "2\n3\n"}
  text = {"T0": {"rectangle": [[1, 1], [8, 6]], "replacementText": "A"}}
  for i in range(4):
    asked = {"Which?": {"abcLabel": i % 2 == 0, "answerTexts": ["A", "Frog"],
                        "correctAnswer": i % 2,
                        "questionId": f"{i}.png-0"}}  # fmt: skip
    content = {"imageName": f"{i}.png", "questions": asked}
    files[f"questions/{i}.png.json"] = content
    files[f"annotations/{i}.png.json"] = {"text": text}
    files[f"images/{i}.png"] = image(i)
  return files


def science_qa():
  files, problems = {}, {}
  for k, split in enumerate(("train", "val", "test")):
    for i in range(2):
      key = str(10 * k + i)
      problems[key] = {"question": "Which?", "choices": ["x", "y", "z"],
                       "answer": i, "hint": "H", "image": "image.png",
                       "split": split}  # fmt: skip
      files[f"{split}/{key}/image.png"] = image(i)
  return {"problems.json": problems, **files}


def rsvqa(stem, splits, picture):
  files = {}
  for split in splits:
    kinds = ("comp", "presence")
    asked = [{"id": i, "img_id": i, "type": kinds[i], "question": "Is it?",
              "active": True} for i in range(2)]  # fmt: skip
    said = [{"question_id": i, "answer": a, "active": True}
            for i, a in enumerate(["Yes", "no"])]  # fmt: skip
    files[f"{stem}_split_{split}_questions.json"] = {"questions": asked}
    files[f"{stem}_split_{split}_answers.json"] = {"answers": said}
  return files | images(*(picture.format(i) for i in range(2)))


def chartqa():
  files = {}
  for split in ("train", "val", "test"):
    files |= images(f"{split}/png/0.png", f"{split}/png/1.png")
    for kind in ("human", "augmented"):
      files[f"{split}/{split}_{kind}.json"] = [
        {"imgname": f"{i}.png", "query": "Share?", "label": f"{10 * i + 5}%"}
        for i in range(2)
      ]
  return files


def textvqa():
  files = images("train_images/0.jpg", "train_images/1.jpg")
  for split in ("train", "val"):
    rows = [{"question_id": i, "image_id": str(i), "question": "Colour?",
             "answers": [ANSWERS[i]] * 10} for i in range(2)]  # fmt: skip
    files[f"TextVQA_0.5.1_{split}.json"] = {"data": rows}
  files["train_images/rotation.csv"] = "ImageID,Rotation\n0,90.0\n1,\n"
  return files


def docvqa():
  files = {}
  for split in ("train", "val"):
    rows = [{"questionId": i, "question": "Colour?", "answers": [a, a.upper()],
             "image": f"documents/{i}.png"}
            for i, a in enumerate(ANSWERS)]  # fmt: skip
    files[f"{split}_v1.0_withQT.json"] = {"data": rows}
    files |= images(f"{split}/documents/0.png", f"{split}/documents/1.png")
  return files


def infovqa():
  files = images("images/0.png", "images/1.png")
  rows = [{"questionId": i, "question": "Colours?", "answers": [f"{a}, Two"],
           "image_local_name": f"{i}.png"}
          for i, a in enumerate(ANSWERS)]  # fmt: skip
  for split in ("train", "val"):
    files[f"infographicsVQA_{split}_v1.0.json"] = {"data": rows}
  return files


def stvqa():
  names = [f"icdar/{i}.png" for i in range(4)]
  rows = [{"question_id": i, "file_path": name, "question": "Colour?",
           "answers": [ANSWERS[i % 2]]}
          for i, name in enumerate(names)]  # fmt: skip
  files = {"train_task_3.json": {"data": rows}}
  files["pseudo_val_images.txt"] = "\n".join(names[2:])
  return files | images(*(f"train_images/{name}" for name in names))


SETS = {
  "coco": coco, "textcaps": textcaps, "screen2words": screen2words,
  "widgetcap": widgetcap, "okvqa": okvqa, "aokvqa": aokvqa, "gqa": gqa,
  "nlvr2": nlvr2, "ai2d": ai2d, "science_qa": science_qa,
  "rsvqa_lr": rsvqa("LR", ("train", "val", "test"), "Images_LR/{}.tif"),
  "rsvqa_hr": rsvqa(
    "USGS", ("train", "val", "test", "test_phili"), "Data/{}.png"
  ),
  "chartqa": chartqa, "vizwizvqa": vizwiz, "tallyqa": tallyqa,
  "countbenchqa": {
    "countbench_paired_questions.json": [{"question": "How many?"}] * 2
  },
  "textvqa": textvqa, "docvqa": docvqa, "infovqa": infovqa, "stvqa": stvqa,
}  # fmt: skip
