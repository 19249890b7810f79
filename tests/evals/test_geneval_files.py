"""GenEval's files: what is drawn, what is judged, what is written."""

import json

import numpy as np
import pytest
from PIL import Image

from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.metrics.geneval import Detection
from unifluid_jax.evals.published import (
  drawn_images,
  geneval_detections,
  geneval_files,
)

# Hand-made in the form of the benchmark's evaluation_metadata.jsonl.
PROMPTS = [
  {"tag": "single_object", "include": [{"class": "bench", "count": 1}],
   "prompt": "a photo of a bench"},
  {"tag": "two_object", "include": [{"class": "bench", "count": 1},
                                    {"class": "cow", "count": 1}],
   "prompt": "a photo of a bench and a cow"},
  {"tag": "counting", "include": [{"class": "cup", "count": 2}],
   "exclude": [{"class": "cup", "count": 3}], "prompt": "a photo of two cups"},
  {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}],
   "prompt": "a photo of a red cow"},
  {"tag": "position", "include": [
    {"class": "bench", "count": 1},
    {"class": "cow", "count": 1, "position": ["left of", 0]}],
   "prompt": "a photo of a cow left of a bench"},
  {"tag": "color_attr", "include": [
    {"class": "cow", "count": 1, "color": "blue"},
    {"class": "cup", "count": 1, "color": "black"}],
   "prompt": "a photo of a blue cow and a black cup"},
]  # fmt: skip


def thing(name, score=0.95, x=0.0, colour=None):
  return {"class": name, "score": score, "box": [x, 0, x + 2, 2],
          "colour": colour}  # fmt: skip


# Two images a prompt; the first of each is right but for the cups.
FOUND = {
  "00000/samples/00000.png": [thing("bench", 0.31)],
  "00000/samples/00001.png": [thing("bench", 0.3), thing("cow")],
  "00001/samples/00000.png": [thing("bench"), thing("cow")],
  "00001/samples/00001.png": [thing("bench")],
  "00002/samples/00000.png": [thing("cup")] * 3,
  "00002/samples/00001.png": [thing("cup"), thing("cup", 0.9)],
  "00003/samples/00000.png": [thing("cow", colour="red")],
  "00003/samples/00001.png": [thing("cow", colour="pink")],
  "00004/samples/00000.png": [thing("bench", x=9.0), thing("cow")],
  "00004/samples/00001.png": [thing("bench"), thing("cow", x=9.0)],
  "00005/samples/00000.png": [thing("cow", colour="blue"),
                              thing("cup", colour="black")],
  "00005/samples/00001.png": [thing("cow", colour="black"),
                              thing("cup", colour="blue")],
}  # fmt: skip
RIGHT = {n for n in FOUND if n.endswith("0.png")} - {"00002/samples/00000.png"}


BY = {"run": "debug", "step": 3}


class Painter:
  def images(self, prompts, seeds):
    self.prompts = list(prompts)
    return np.stack([np.full((4, 4, 3), s % 256, np.uint8) for s in seeds])


def quiet(_):
  pass


def draw(folder, prompts=PROMPTS, samples=2, by=None):
  drawings = geneval_files.drawings(prompts, samples)
  drawn_images.draw(Painter(), drawings, str(folder), 5, by or BY, quiet)
  geneval_files.write_metadata(str(folder), prompts)
  return str(folder)


def detections(path, images=None):
  rows = [{"detector": "by hand"}]
  rows += [{"image": n, "objects": x} for n, x in (images or FOUND).items()]
  path.write_text("\n".join(map(json.dumps, rows)))
  return geneval_detections.read(str(path))


def write_prompts(path, prompts):
  path.write_text("\n".join(json.dumps(p) for p in prompts) + "\n\n")
  return str(path)


def test_layout_is_the_benchmarks(tmp_path):
  folder = draw(tmp_path / "images")
  got = sorted(str(p.relative_to(folder)) for p in
               (tmp_path / "images").rglob("*") if p.is_file())  # fmt: skip
  want = [f"{i:05d}/samples/{k:05d}.png" for i in range(6) for k in range(2)]
  want += [f"{i:05d}/metadata.jsonl" for i in range(6)]
  assert got == sorted([*want, "drawn.json"])
  for i, prompt in enumerate(PROMPTS):
    with open(f"{folder}/{i:05d}/metadata.jsonl") as f:
      assert json.load(f) == prompt
  assert Image.open(f"{folder}/00000/samples/00000.png").format == "PNG"


def test_metadata_of_other_prompts_are_not_replaced(tmp_path):
  folder = draw(tmp_path / "images")
  geneval_files.write_metadata(folder, PROMPTS)
  other = [PROMPTS[0] | {"tag": "two_object"}]
  with pytest.raises(ValueError, match=r"00000/metadata\.jsonl is of another"):
    geneval_files.write_metadata(folder, other)


def test_every_image_has_its_own_seed_whatever_else_is_drawn():
  four = geneval_files.drawings(PROMPTS)
  assert len(four) == 24 and len({d.seed for d in four}) == 24
  assert [d.prompt for d in four[4:8]] == ["a photo of a bench and a cow"] * 4
  two = geneval_files.drawings(PROMPTS[:2], samples=2)
  assert [four[k] for k in (0, 1, 4, 5)] == two
  other = geneval_files.drawings(PROMPTS, seed=1)
  assert not {d.seed for d in four} & {d.seed for d in other}


def test_rewritten_prompts_are_drawn_and_named(tmp_path):
  prompts = [p | {"rewritten": f"long {i}"} for i, p in enumerate(PROMPTS)]
  path = write_prompts(tmp_path / "p.jsonl", prompts)
  read = geneval_files.read_prompts(path)
  assert read == prompts
  assert geneval_files.kind_of(read, path) == "rewritten"
  assert [d.prompt for d in geneval_files.drawings(read, 1)] == [
    f"long {i}" for i in range(6)
  ]
  folder, said = draw(tmp_path / "images", read), []
  found = detections(tmp_path / "d.json")
  result = geneval_files.score(folder, found, said.append)
  assert result["prompts"] == "rewritten"
  assert all("geneval, rewritten prompts" in line for line in said)
  rows = results(folder)
  assert rows[0]["prompt"] == "a photo of a bench"  # the benchmark's own
  mixed = write_prompts(tmp_path / "m.jsonl", [*PROMPTS, prompts[0]])
  with pytest.raises(ValueError, match="1 of 7 prompts are rewritten"):
    geneval_files.read_prompts(mixed)
  draw(tmp_path / "images2")
  (tmp_path / "images2/00003/metadata.jsonl").write_text(json.dumps(prompts[3]))
  with pytest.raises(ValueError, match="2 of 12 prompts are rewritten"):
    geneval_files.score(str(tmp_path / "images2"), found, quiet)


def results(folder):
  with open(f"{folder}/results.jsonl") as f:
    return [json.loads(line) for line in f]


def test_verdicts_and_their_fields(tmp_path):
  folder, said = draw(tmp_path / "images"), []
  result = geneval_files.score(
    folder, detections(tmp_path / "d.json"), said.append
  )
  rows = results(folder)
  assert all(list(row) == ["filename", "tag", "prompt", "correct", "reason",
                           "metadata", "details"] for row in rows)  # fmt: skip
  assert {r["filename"] for r in rows} == {f"{folder}/{n}" for n in FOUND}
  assert {r["filename"] for r in rows if r["correct"]} == {
    f"{folder}/{n}" for n in RIGHT
  }
  by_name = {r["filename"].removeprefix(f"{folder}/"): r for r in rows}
  row = by_name["00004/samples/00001.png"]
  assert "left of" in row["reason"] and row["tag"] == "position"
  assert json.loads(row["metadata"]) == PROMPTS[4]
  assert json.loads(row["details"]) == {
    "bench": [[0, 0, 2, 2, 0.95]],
    "cow": [[9, 0, 11, 2, 0.95]],
  }
  # Objects at the threshold are none; counting has its own.
  assert json.loads(by_name["00000/samples/00001.png"]["details"]) == {
    "cow": [[0, 0, 2, 2, 0.95]]
  }
  assert json.loads(by_name["00002/samples/00001.png"]["details"]) == {
    "cup": [[0, 0, 2, 2, 0.95]]
  }
  assert by_name["00002/samples/00000.png"]["reason"]

  tags = dict.fromkeys(geneval.TAGS, 0.5) | {"counting": 0.0}
  assert result["scores"] == pytest.approx(
    tags | {"overall": 2.5 / 6, "images": 5 / 12, "prompts": 5 / 6}
  )
  assert result["images"] == 12 and result["distinct_prompts"] == 6
  assert "12 images, the benchmark has 2212" in result["warning"]
  assert result["made_by"] == BY
  assert "geneval, raw prompts: overall 0.41667" in said[6]
  assert "by hand" in said[6] and "2212" in said[7]
  json.dumps(result)


def test_overall_is_the_mean_of_tags_not_of_images(tmp_path):
  """One right image of one tag, three wrong of another."""
  prompts = [PROMPTS[0]] + [PROMPTS[1]] * 3
  found = {f"{i:05d}/samples/00000.png": [thing("bench")] for i in range(4)}
  result = geneval_files.score(
    draw(tmp_path / "images", prompts, 1),
    detections(tmp_path / "d.json", found),
    quiet,
  )
  assert result["scores"]["overall"] == 0.5
  assert result["scores"]["images"] == 0.25
  # Equal metadata are one prompt, as in the benchmark's summary.
  assert result["distinct_prompts"] == 2 and result["scores"]["prompts"] == 0.5
  assert "mean of 2 of six tags" in result["warning"]


def test_other_files_of_the_folder_are_not_judged(tmp_path):
  folder = draw(tmp_path / "images")
  other = tmp_path / "images/grid/samples"
  other.mkdir(parents=True)
  for path in (other / "00000.png", tmp_path / "images/00000/samples/x.png",
               tmp_path / "images/00000/grid.png"):  # fmt: skip
    path.write_bytes(b"")
  result = geneval_files.score(folder, detections(tmp_path / "d.json"), quiet)
  assert result["images"] == 12


def test_detections_must_be_of_these_images(tmp_path):
  folder, path = draw(tmp_path / "images"), tmp_path / "d.json"
  last = "00005/samples/00001.png"
  fewer = {k: v for k, v in FOUND.items() if k != last}
  with pytest.raises(ValueError, match=f"no detections of {last}"):
    geneval_files.score(folder, detections(path, fewer), quiet)
  more = FOUND | {"00009/samples/00000.png": []}
  with pytest.raises(ValueError, match="without image: 00009"):
    geneval_files.score(folder, detections(path, more), quiet)
  with pytest.raises(ValueError, match="holds no images in GenEval's layout"):
    geneval_files.score(str(tmp_path), detections(path), quiet)
  (tmp_path / "images/00001/metadata.jsonl").unlink()
  with pytest.raises(FileNotFoundError, match=r"00001/metadata\.jsonl"):
    geneval_files.score(folder, detections(path), quiet)
  (tmp_path / "images" / last).unlink()
  with pytest.raises(ValueError, match=f"1 of 12 .* not drawn, such as {last}"):
    geneval_files.score(folder, detections(path, fewer), quiet)


def test_colours_that_are_asked_for_must_be_there(tmp_path):
  name = "00003/samples/00000.png"
  found = FOUND | {name: [thing("cow")]}
  folder = draw(tmp_path / "images")
  with pytest.raises(ValueError, match=f"{name}: its cow has no colour"):
    geneval_files.score(folder, detections(tmp_path / "d.json", found), quiet)
  # Not below the threshold, nor beyond the best one.
  fine = [thing("cow", 0.3), thing("cow", 0.4), thing("cow", colour="red")]
  found = FOUND | {name: fine}
  result = geneval_files.score(
    folder, detections(tmp_path / "d.json", found), quiet
  )
  assert result["scores"]["colors"] == 0.5


@pytest.mark.parametrize(
  "line",
  ["{", "[]", '{"tag": "counting"}',
   json.dumps(PROMPTS[0] | {"tag": "texture"}),
   json.dumps(PROMPTS[0] | {"include": [{"class": "cow", "count": 0}]}),
   json.dumps(PROMPTS[0] | {"rewritten": " "}),
   json.dumps(PROMPTS[0] | {"prompt": 3}), "[" * 100_000,
   json.dumps(PROMPTS[0] | {"include": [
     {"class": "cow", "count": 1, "position": ["left of", 0]}]})],
)  # fmt: skip
def test_other_lines_are_no_prompts(tmp_path, line):
  path = tmp_path / "p.jsonl"
  path.write_text(json.dumps(PROMPTS[1]) + "\n" + line)
  with pytest.raises(ValueError, match=r"p\.jsonl:2: no metadata of GenEval"):
    geneval_files.read_prompts(str(path))


def test_prompts_without_include_ask_for_nothing(tmp_path):
  """As the benchmark's own code reads them."""
  asked = {"tag": "counting", "prompt": "no cow",
           "exclude": [{"class": "cow", "count": 1}]}  # fmt: skip
  path = tmp_path / "p.jsonl"
  path.write_text(json.dumps(asked))
  assert geneval_files.read_prompts(str(path)) == [asked]
  cow = Detection("cow", 0.95, (0.0, 0.0, 1.0, 1.0))
  assert geneval_files.judged("0.png", asked, [])["correct"]
  row = geneval_files.judged("0.png", asked, [cow])
  assert not row["correct"] and row["reason"] == "expected cow < 1, found 1"


def test_a_line_ends_at_its_newline_alone(tmp_path):
  """JSON leaves other ends of lines bare."""
  asked = PROMPTS[0] | {"rewritten": "a bench\u2028on grass\x85"}
  path = tmp_path / "p.jsonl"
  path.write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
  assert geneval_files.read_prompts(str(path)) == [asked]


def test_no_prompts(tmp_path):
  with pytest.raises(FileNotFoundError, match="no GenEval prompts"):
    geneval_files.read_prompts(str(tmp_path / "p.jsonl"))
  (tmp_path / "p.jsonl").write_text("\n")
  with pytest.raises(ValueError, match="holds no prompts"):
    geneval_files.read_prompts(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize("above", [0.3, 0.9])
def test_sixteen_best_of_a_class_and_overlaps_stay(above):
  rng = np.random.default_rng(0)
  many = [Detection("cow", float(s), (0.0, 0.0, 1.0, 1.0))
          for s in rng.uniform(0.5, 1, 60)]  # fmt: skip
  many += [Detection("cup", above, (0.0, 0.0, 1.0, 1.0))]
  kept = geneval.confident(many, above)
  want = sorted((d.score for d in many[:60] if d.score > above), reverse=True)
  assert [d.score for d in kept["cow"]] == want[:16] and list(kept) == ["cow"]
