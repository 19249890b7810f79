"""The question readers on small file sets in the layout of publication."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.task_sets import png, relative, write
from unifluid_jax.data.transfers import photo_readers as photographs
from unifluid_jax.data.transfers import tasks
from unifluid_jax.data.transfers import text_readers as texts
from unifluid_jax.data.transfers.files import Example


def test_okvqa(tmp_path):
  question = {"question_id": 31, "image_id": 3, "question": "Why?"}
  given = [{"answer": f"a{i}", "raw_answer": f"as{i}"} for i in range(10)]
  note = {"question_id": 31, "image_id": 3, "answers": given}
  image = "val2014/COCO_val2014_000000000003.jpg"
  files = {
    "OpenEnded_mscoco_val2014_questions.json": {"questions": [question]},
    "mscoco_val2014_annotations.json": {"annotations": [note]},
    image: b"",
  }
  root = write(tmp_path, files)
  (found,) = photographs.okvqa(root, "val")
  answers = tuple(f"a{i}" for i in range(10))
  assert (found.id, found.question) == ("31", "Why?")
  assert (found.answers, relative(root, found)) == (answers, (image,))
  note["question_id"] = 32
  write(root, {"mscoco_val2014_annotations.json": {"annotations": [note]}})
  with pytest.raises(ValueError, match=r"questions.json: entry 0 .*'31'"):
    photographs.okvqa(root, "val")


def test_aokvqa(tmp_path):
  entry = {
    "question_id": "22Mx",
    "image_id": 5,
    "question": "What?",
    "choices": ["a", "b", "c", "d"],
    "difficult_direct_answer": False,
  }
  full = {**entry, "correct_choice_idx": 2, "direct_answers": ["x"] * 10,
          "rationales": ["r"] * 3}  # fmt: skip
  files = {
    "aokvqa_v1p0_val.json": [full],
    "aokvqa_v1p0_test.json": [entry],
    "val2017/000000000005.jpg": b"",
    "test2017/000000000005.jpg": b"",
  }
  root = write(tmp_path, files)
  (found,) = photographs.aokvqa(root, "val")
  assert found[:1] + found[2:6] == (
    "22Mx", "What?", ("x",) * 10, ("a", "b", "c", "d"), 2
  )  # fmt: skip
  assert relative(root, found) == ("val2017/000000000005.jpg",)
  (hidden,) = photographs.aokvqa(root, "test")
  assert (hidden.answers, hidden.correct) == ((), -1)


def test_gqa(tmp_path):
  content = {"07": {"imageId": "n1", "question": "Red?", "answer": "yes",
                    "fullAnswer": "Yes.", "isBalanced": True},
             "08": {"imageId": "n1", "question": "Is it?"}}  # fmt: skip
  files = {"testdev_balanced_questions.json": content, "images/n1.jpg": b""}
  root = write(tmp_path, files)
  found = photographs.gqa(root, "testdev_balanced")
  assert [(e.id, e.question, e.answers) for e in found] == [
    ("07", "Red?", ("yes",)), ("08", "Is it?", ())
  ]  # fmt: skip
  assert relative(root, found[0]) == ("images/n1.jpg",)


def test_nlvr2(tmp_path):
  dev = {"identifier": "dev-3-1-0", "sentence": "Two\u2028dogs.",
         "label": "True"}  # fmt: skip
  train = {"identifier": "train-9-0-1", "sentence": "A cat.", "label": "False",
           "directory": 42}  # fmt: skip
  pair = ("dev/dev-3-1-img0.png", "dev/dev-3-1-img1.png")
  far = tuple(f"images/train/42/train-9-0-img{i}.png" for i in range(2))
  line = json.dumps(dev, ensure_ascii=False) + "\n\n"
  files = {"dev.json": line, "data/train.json": train}
  root = write(tmp_path, {**files, **dict.fromkeys(pair + far, b"")})
  (found,) = photographs.nlvr2(root, "dev")
  assert relative(root, found) == pair
  assert (found.question, found.answers) == ("Two\u2028dogs.", ("True",))
  (found,) = photographs.nlvr2(root, "train")
  assert (found.id, relative(root, found)) == ("train-9-0-1", far)


def test_vizwiz(tmp_path):
  answers = [{"answer": a, "answer_confidence": "yes"} for a in ("x", "", "y")]
  entry = {"image": "VizWiz_val_00000012.jpg", "question": "What?",
           "answers": answers, "answerable": 1}  # fmt: skip
  hidden = {"image": "VizWiz_test_00000003.jpg", "question": "What?"}
  files = {"annotations/val.json": [entry], "Annotations/test.json": [hidden],
           "val/VizWiz_val_00000012.jpg": b"",
           "test/VizWiz_test_00000003.jpg": b""}  # fmt: skip
  root = write(tmp_path, files)
  (found,) = photographs.vizwiz(root, "val")
  assert (found.id, found.answers) == ("12", ("x", "y"))
  assert relative(root, found) == ("val/VizWiz_val_00000012.jpg",)
  (found,) = photographs.vizwiz(root, "test")
  assert (found.id, found.answers) == ("3", ())


def test_tallyqa(tmp_path):
  entry = {
    "image": "VG_100K/1.jpg",
    "image_id": 1,
    "question": "How many?",
    "question_id": 5,
    "answer": 3,
    "data_source": "imported_vqa",
  }
  again = {**entry, "image": "val2014/2.jpg", "image_id": 2}
  files = {"train.json": [entry],
           "test.json": [{**entry, "issimple": True},
                         {**again, "issimple": False}],
           "VG_100K/1.jpg": b""}  # fmt: skip
  root = write(tmp_path, files)
  found = photographs.tallyqa(root, "test")
  assert [(e.id, e.kind) for e in found] == [
    ("1/5", "simple"), ("2/5", "complex")
  ]  # fmt: skip
  assert relative(root, found[1]) == ("val2014/2.jpg",)
  assert (found[0].answers, photographs.tallyqa(root, "train")[0].kind) == (
    ("3",), ""
  )  # fmt: skip


def test_countbench(tmp_path):
  images = [{"bytes": png(), "path": None}, None, {"bytes": png("L")},
            {"bytes": png()}]  # fmt: skip
  table = pa.table(
    {"image": images, "number": [4, 5, 6, 7], "text": list("t" * 4)}
  )
  pa.parquet.write_table(table, tmp_path / "train-0.parquet")
  questions = [{"question": f"How many {c}?"} for c in "abcd"]
  root = write(tmp_path, {"countbench_paired_questions.json": questions})
  found = photographs.countbench(root, "test")
  assert [(e.id, e.question, e.answers) for e in found] == [
    ("0", "How many a?", ("4",)), ("3", "How many d?", ("7",))
  ]  # fmt: skip
  assert found[0].load() == (png(),)
  write(root, {"countbench_paired_questions.json": questions[:2]})
  with pytest.raises(ValueError, match="has 2 questions, .* 4 rows"):
    photographs.countbench(root, "test")
  write(root, {"train-0.parquet": b"no"})
  with pytest.raises(ValueError, match="download it again"):
    photographs.countbench(root, "test")
  (root / "train-0.parquet").unlink()
  with pytest.raises(FileNotFoundError, match="holds 0 parquet files"):
    photographs.countbench(root, "test")


@pytest.mark.parametrize("below", ["", "ai2d/"])
def test_ai2d(tmp_path, below):
  def asked(name, label):
    entry = {"abcLabel": label, "answerTexts": ["A", "Frog"],
             "correctAnswer": 1, "questionId": f"{name}.png-0"}  # fmt: skip
    return {"imageName": f"{name}.png", "questions": {"Which?": entry}}

  note = {"text": {"T0": {"rectangle": [[1, 2], [30, 40]], "value": "eye",
                          "replacementText": "A"}}}  # fmt: skip
  files = {"ai2d_test_ids.csv": "8\n"}
  for name, label in ("7", False), ("8", True), ("9", False):
    files[f"{below}questions/{name}.png.json"] = asked(name, label)
    files[f"{below}images/{name}.png"] = b""
  files[f"{below}questions/10.png.json"] = {"imageName": "10", "questions": {}}
  files[f"{below}annotations/8.png.json"] = note
  root = write(tmp_path, files)
  (found,) = texts.ai2d(root, "test")
  assert found == Example(
    "8.png-0", (f"{root}/{below}images/8.png",), "Which?", ("Frog",),
    ("A", "Frog"), 1, letters=(("A", (2.0, 1.0, 40.0, 30.0)),),
  )  # fmt: skip
  train = texts.ai2d(root, "train")
  assert [e.id for e in train] == ["7.png-0", "9.png-0"]
  assert train[0].letters == ()
  write(root, {"DMSans-Regular.ttf": b"font"})
  (drawn,) = texts.ai2d(root, "test")
  assert drawn == found._replace(font=f"{root}/DMSans-Regular.ttf")
  write(root, {"ai2d_test_ids.csv": "\n"})
  with pytest.raises(ValueError, match="has no test questions"):
    texts.ai2d(root, "test")


@pytest.mark.parametrize("below", ["", "images/"])
def test_science_qa(tmp_path, below):
  entry = {"question": "Which?", "choices": ["x", "y"], "answer": 1,
           "hint": "H", "image": "image.png", "split": "test"}  # fmt: skip
  content = {"3": entry, "4": {**entry, "image": None},
             "5": {**entry, "split": "train"}}  # fmt: skip
  image = f"{below}test/3/image.png"
  root = write(tmp_path, {"problems.json": content, image: b""})
  (found,) = texts.science_qa(root, "test")
  assert found == Example(
    "3", (f"{root}/{image}",), "Which?", ("y",), ("x", "y"), 1, "H"
  )  # fmt: skip


RSVQA = [
  ("LR_split_val", "Images_LR/4.tif", texts.rsvqa_lr, "val"),
  ("USGS_split_test_phili", "Data/4.png", texts.rsvqa_hr, "test_phili"),
]


@pytest.mark.parametrize(("stem", "image", "reader", "split"), RSVQA)
def test_rsvqa(tmp_path, stem, image, reader, split):
  def question(key, kind):
    return {"id": key, "img_id": 4, "type": kind, "question": f"q{key}",
            "answers_ids": [key + 90], "active": True}  # fmt: skip

  questions = [question(0, "comp"), {"id": 1, "active": False},
               question(2, "count"), question(3, "presence")]  # fmt: skip
  answers = [{"id": 90 + i, "question_id": i, "answer": a, "active": True}
             for i, a in ((3, "No"), (0, "yes"), (2, 5))]  # fmt: skip
  files = {f"{stem}_questions.json": {"questions": questions},
           f"{stem}_answers.json": {"answers": [*answers, {"active": False}]},
           image: b""}  # fmt: skip
  root = write(tmp_path, files)
  found = reader(root, split)
  assert [(e.id, e.kind, e.answers) for e in found] == [
    ("0", "comp", ("yes",)), ("3", "presence", ("No",))
  ]  # fmt: skip
  assert relative(root, found[0]) == (image,)


def test_chartqa(tmp_path):
  rows = [{"imgname": f"{i}.png", "query": f"q{i}", "label": "5%"}
          for i in range(2)]  # fmt: skip
  files = {"test/test_human.json": rows, "test/png/0.png": b""}
  root = write(tmp_path, files)
  found = texts.chartqa(root, "test_human")
  assert [(e.id, e.kind, e.answers) for e in found] == [
    ("human/0", "human", ("5%",)), ("human/1", "human", ("5%",))
  ]  # fmt: skip
  assert relative(root, found[1]) == ("test/png/1.png",)
  with pytest.raises(ValueError, match="no split 'test'.* test_human"):
    texts.chartqa(root, "test")


def test_textvqa(tmp_path):
  entry = {"question_id": 1, "image_id": "ab", "question": "What?",
           "answers": ["x"] * 10}  # fmt: skip
  files = {
    "TextVQA_0.5.1_val.json": {"data": [entry]},
    "TextVQA_0.5.1_test.json": {"data": [{**entry, "answers": []}]},
    "train_images/ab.jpg": b"",
    "test_images/ab.jpg": b"",
    "train_images/rotation.csv": "ImageID,X,Rotation\nab,,270.0\nc,,\n",
  }
  root = write(tmp_path, files)
  (found,) = texts.textvqa(root, "val")
  assert (found.id, found.answers, found.turns) == ("1", ("x",) * 10, 3)
  assert relative(root, found) == ("train_images/ab.jpg",)
  (found,) = texts.textvqa(root, "test")
  assert (found.answers, found.turns) == ((), 0)
  write(root, {"train_images/rotation.csv": "ImageID,Rotation\nab,left\n"})
  with pytest.raises(ValueError, match="rotation.csv: .*degrees"):
    texts.textvqa(root, "val")


def test_docvqa(tmp_path):
  entry = {"questionId": 337, "question": "Date?", "image": "documents/a.png",
           "answers": ["1/8/93", "1/8"]}  # fmt: skip
  bare = {k: v for k, v in entry.items() if k != "answers"}
  files = {
    "val_v1.0_withQT.json": {"data": [entry]},
    "test_v1.0.json": {"data": [bare]},
    "val/documents/a.png": b"",
    "test/documents/a.png": b"",
  }
  root = write(tmp_path, files)
  (found,) = texts.docvqa(root, "val")
  assert (found.id, found.answers) == ("337", ("1/8/93", "1/8"))
  assert relative(root, found) == ("val/documents/a.png",)
  assert texts.docvqa(root, "test")[0].answers == ()


def test_infovqa(tmp_path):
  entry = {"questionId": 6, "question": "Who?", "image_local_name": "3.jpeg",
           "answers": ["a, b", "C"]}  # fmt: skip
  files = {"infographicsVQA_train_v1.0.json": {"data": [entry]},
           "infographicsVQA_val_v1.0_withQT.json": {"data": [entry]},
           "images/3.jpeg": b""}  # fmt: skip
  root = write(tmp_path, files)
  assert texts.infovqa(root, "train")[0].answers == ("a, b", "C")
  (found,) = texts.infovqa(root, "val")
  assert (found.id, found.answers) == ("6", ("a, b", "b, a", "C"))
  assert relative(root, found) == ("images/3.jpeg",)


def test_stvqa(tmp_path):
  names = [f"coco-text/COCO_train2014_{i}.jpg" for i in range(40)] + ["icdar/x"]
  rows = [{"question_id": i, "file_path": name, "question": "What?",
           "answers": ["Stop"]} for i, name in enumerate(names)]  # fmt: skip
  files = {"train_task_3.json": {"data": rows}}
  files |= {f"train_images/{name}": b"" for name in names}
  root = write(tmp_path, files)
  train, val = texts.stvqa(root, "train"), texts.stvqa(root, "val")
  ids = sorted(int(e.id) for e in train + val)
  assert ids == list(range(41))
  assert 1 <= len(val) <= 10
  listed = write(root, {"pseudo_val_images.txt": "icdar/x\n"})
  (held,) = texts.stvqa(listed, "val")
  assert relative(root, held) == ("train_images/icdar/x",)
  for text, message in (
    ("icdar/x\nx\n./icdar/x\n", "2 of its 3 names .*_3.json, such as 'x':"),
    ("\n", "images.txt: it is empty: list file_paths"),
  ):
    write(root, {"pseudo_val_images.txt": text})
    for split in ("train", "val"):
      with pytest.raises(ValueError, match=message):
        texts.stvqa(root, split)
  write(root, {"pseudo_val_images.txt": "icdar/x\n"})
  write(root, {f"train2014/COCO_train2014_{i}.jpg": b"" for i in range(40)})
  assert relative(root, texts.stvqa(root, "train")[0]) == (
    "train2014/COCO_train2014_0.jpg",
  )
  bare = {k: v for k, v in rows[-1].items() if k != "answers"}
  write(root, {"test_task_3.json": {"data": [bare]},
               "test_task3_images/icdar/x": b""})  # fmt: skip
  write(root, {"pseudo_val_images.txt": "nowhere"})  # not of the test file
  (hidden,) = texts.stvqa(root, "test")
  assert hidden.answers == ()
  assert relative(root, hidden) == ("test_task3_images/icdar/x",)


# Errors that every reader shares


READERS = {row.name: row for row in tasks.ROWS}


@pytest.mark.parametrize("name", READERS)
def test_an_empty_folder_is_named_with_the_fix(tmp_path, name):
  row = READERS[name]
  splits = {s for mix in row.train + row.final for s in mix.split("+")}
  if name == "countbenchqa":
    splits = set()
  for split in splits | {row.split}:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: download"):
      row.reader(tmp_path, split)


@pytest.mark.parametrize("name", [n for n in READERS if n != "gqa"])
def test_an_unknown_split_lists_the_known_ones(tmp_path, name):
  with pytest.raises(ValueError, match="no split 'x': use one of .*t"):
    READERS[name].reader(tmp_path, "x")


def test_values_that_are_no_text_are_refused(tmp_path):
  row = {"questionId": 1, "question": None, "image": "a", "answers": ["x"]}
  write(tmp_path, {"val_v1.0.json": {"data": [row]}})
  with pytest.raises(ValueError, match="entry 0 .*None is NoneType"):
    texts.docvqa(tmp_path, "val")
  row |= {"question": "q", "answers": "x"}
  write(tmp_path, {"val_v1.0.json": {"data": [row]}})
  with pytest.raises(ValueError, match="entry 0 .*one string, not a list"):
    texts.docvqa(tmp_path, "val")


def test_an_object_where_a_list_belongs_is_named(tmp_path):
  write(tmp_path, {"testdev_questions.json": []})
  with pytest.raises(ValueError, match="holds list, not an object by id"):
    photographs.gqa(tmp_path, "testdev")
