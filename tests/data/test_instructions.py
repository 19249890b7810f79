"""Dialogues that ask for images: wordings, requests, replies, files."""

import collections
import json

import pytest

from tests.data.test_bad_data import open_, png
from unifluid_jax.data import conversation
from unifluid_jax.data.instructions import builder, few_shot, templates
from unifluid_jax.data.instructions.written import Captioned

USED = templates.choose()


def test_patterns_are_combined_in_all_ways():
  assert templates.expand("[a|b ]{caption}[|!]") == [
    "a{caption}", "a{caption}!", "b {caption}", "b {caption}!"
  ]  # fmt: skip
  for pattern, message in (
    ("draw", "each text needs one"),
    ("[{caption}|it]", "each text needs one"),
    ("{caption}" + "[a|b]" * 20, "has 1048576 texts: split it"),
  ):
    with pytest.raises(ValueError, match=message):
      templates.expand(pattern)


def test_the_papers_number_of_templates_without_duplicates():
  """380 to train on and 20 held out, whatever their pattern's size."""
  assert list(map(len, USED)) == [380, 20, 327]
  prompts = (*USED.prompts, *USED.held_out)
  for some in (prompts, USED.answers):
    assert len({templates.key(text) for text in some}) == len(some)
    assert all(text.count(templates.CAPTION) == 1 for text in some)
  of = {
    text: pattern
    for pattern in templates.POOLS.prompts
    for text in templates.expand(pattern)
  }
  sizes = collections.Counter(of[text] for text in prompts)
  assert sorted(sizes.values()) == [12, 12, 12, 16, 16, 36, 40, 48, 72, 136]


def test_templates_depend_on_the_seed_alone():
  assert templates.choose() == USED
  other = templates.choose(seed=1)
  assert set(other.prompts) != set(USED.prompts)
  assert other.held_out != USED.held_out
  few = templates.choose(count=20, held_out=0.25)
  assert [len(x) for x in few] == [15, 5, 20]
  assert templates.choose(held_out=0.0).held_out == ()
  for changes, message in (
    (dict(count=4), "leaves none on one side"),
    (dict(held_out=1.0), "use count >= 1, 0 <= held_out < 1"),
    (dict(count=0), "use count >= 1"),
  ):
    with pytest.raises(ValueError, match=message):
      templates.choose(**changes)


def test_texts_that_read_the_same_are_one():
  assert templates.deal(["draw {caption}[|.|!]", "[Draw|A] {caption}"], 9, 0)
  dealt = templates.deal(["draw {caption}[|.|!]", "[Draw|A] {caption}"], 9, 0)
  assert sorted(map(templates.key, dealt)) == ["acaption", "drawcaption"]


@pytest.mark.parametrize("caption, cleaned", [
  (" A cat\non a mat. ", "a cat on a mat"),
  ("Paris at night", "Paris at night"),
  ("Two dogs..", "two dogs"),
  (" . ", "is empty"),
  ("a <image> b", "holds a placeholder"),
  ("a <image_gen>", "holds a placeholder"),
])  # fmt: skip
def test_captions_become_parts_of_sentences(caption, cleaned):
  if cleaned.startswith(("is ", "holds ")):
    with pytest.raises(ValueError, match=cleaned):
      templates.cleaned(caption)
  else:
    assert templates.cleaned(caption) == cleaned
    filled = templates.fill("{caption}: draw it", cleaned)
    assert filled[1:] == cleaned[1:] + ": draw it" and filled[0].isupper()


def test_pools_may_be_ones_own(tmp_path):
  path = tmp_path / "p.json"
  path.write_text(json.dumps({"prompts": ["paint {caption}"]}))
  pools = templates.load_pools(path)
  assert pools == templates.POOLS._replace(prompts=("paint {caption}",))
  for content, message in (
    ([], "no JSON object of lists"),
    ({"seeds": []}, "unknown pool 'seeds': use prompts, captions, answers"),
    ({"prompts": []}, "prompts is no list of texts"),
    ({"answers": [7]}, r"answers\[0\] is int"),
  ):
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
      templates.load_pools(path)


# -------------------------------------------------------------------- requests

IMAGES = [Captioned(i, f"{i}.png", f"a photo number{i}") for i in range(80)]


@pytest.fixture(scope="module")
def asked():
  return list(few_shot.requests(IMAGES, templates.POOLS, USED, 0))


def test_requests_hold_four_other_examples_and_three_seeds(asked):
  assert asked == list(few_shot.requests(IMAGES, templates.POOLS, USED, 0))
  assert asked != list(few_shot.requests(IMAGES, templates.POOLS, USED, 1))
  seen = set()
  for image, row in zip(IMAGES, asked, strict=True):
    assert (row["image"], row["caption"]) == (image.image, image.caption)
    system, user = (m["content"] for m in row["messages"])
    assert '"prompt"' in system and '"answer"' in system
    lines = user.splitlines()
    shots = [x.removeprefix("caption: ") for x in lines if "caption: " in x[:9]]
    assert shots.pop() == image.caption and len(set(shots)) == 4
    assert image.caption not in shots
    for caption, line in zip(shots, lines[2:10:2], strict=True):
      # The examples are such replies as are asked for.
      few_shot.check(caption, line, 1.0)
    (prompt,) = (x for x in lines if x.startswith("Let the prompt be like: "))
    prompt = prompt.partition(": ")[2]
    assert (prompt in USED.held_out) == row["held_out"]
    assert (prompt in USED.prompts) != row["held_out"]
    assert sum(f"- {c}" in lines for c in templates.POOLS.captions) == 1
    (answer,) = (x for x in lines if x.startswith("Let the answer be like: "))
    assert answer.partition(": ")[2] in USED.answers
    seen |= {prompt}
  assert len(seen) > 60
  assert 0 < sum(row["held_out"] for row in asked) < 20
  with pytest.raises(ValueError, match="4 images with captions.* at least 5"):
    next(few_shot.requests(IMAGES[:4], templates.POOLS, USED, 0))


def test_examples_never_show_a_held_out_wording():
  used = templates.Templates(("x {caption}",), ("y {caption}",) * 9, ("z",))
  rows = list(few_shot.requests(IMAGES[:9], templates.POOLS, used, 0))
  users = [row["messages"][1]["content"] for row in rows]
  assert all(u.count('"prompt": "X a photo') == 4 for u in users)
  assert not any('"Y a' in u for u in users)


def reply(prompt="Draw a red bird on a branch.", answer="Here it is.", **more):
  return json.dumps({"prompt": prompt, "answer": answer, **more})


GOOD = few_shot.Said("Draw a red bird on a branch.", "Here it is.")


@pytest.mark.parametrize("text, message", [
  (reply(), ""),
  (f"Gladly:\n```json\n{reply()}\n```", ""),
  (reply(prompt="Draw birds and branches in red"), ""),
  (reply(prompt="Draw a red fish"), "has 33% of the caption's words, less"),
  ("Here it is.", "not JSON"),
  (reply(more=1), "not one object with prompt and answer"),
  ('{"prompt": "a"}', "not one object"),
  ("[]", "not one object"),
  (None, "NoneType, not a text"),
  (reply(answer=7), "answer is int"),
  (reply(answer=" "), "the answer is empty"),
  (reply(answer="a\nb"), "the answer is no line of at most 300"),
  (reply(prompt="red bird branch " * 20), "the prompt is no line of at most"),
  (reply(answer="Here: <image_gen>"), "the answer holds <image_gen>"),
  (reply(prompt="Draw {caption}"), "the prompt holds {caption}"),
  (reply(answer="I'm sorry, no."), "the answer refuses"),
  (reply(answer="Which bird?"), "the answer asks"),
])  # fmt: skip
def test_replies_are_checked(text, message):
  caption = "a red bird on a branch"
  if message:
    with pytest.raises(ValueError, match=message):
      few_shot.check(caption, text)
  else:
    said = few_shot.check(caption, text)
    assert "red" in said.prompt and said.answer == GOOD.answer


def test_replies_find_their_requests(asked):
  def of(i, text=None):
    n = asked[i]["caption"].split()[-1]
    text = reply(f"Draw a photo: {n}") if text is None else text
    return {"id": asked[i]["id"], "reply": text}

  replies = [of(2), of(1, "no"), of(0), of(1)]
  replies += [of(4, of(2)["reply"]), of(5, "x")]
  found = few_shot.judge(asked[:7], replies)
  ids = [row["id"] for row in asked]
  assert [r["id"] for r, _ in found.accepted] == ids[:3]
  assert [r["id"] for r in found.unanswered] == [ids[3], ids[6]]
  assert [r["id"] for r, _ in found.rejected] == ids[4:6]
  # Half of the words of another caption are in it, but it was asked before.
  assert [why for _, why in found.rejected][0] == (
    "the prompt is that of another caption"
  )
  with pytest.raises(ValueError, match="the id '9', which no request has"):
    few_shot.judge(asked, [{"id": "9", "reply": ""}])


# ----------------------------------------------------------------------- files


@pytest.fixture
def captions(tmp_path):
  """Thirty images in files, one line without a caption's text to use."""
  data = tmp_path / "data"
  data.mkdir()
  lines = []
  for i in range(30):
    (data / f"{i}.png").write_bytes(png(i))
    lines.append({"image": f"{i}.png", "suffix": f"A bird number{i}."})
  lines[7]["suffix"] = "."
  (data / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return open_(data, "jsonl", "c.jsonl"), tmp_path / "made"


def test_an_image_of_several_records_is_asked_for_once(tmp_path):
  """Else those of held-out requests would be trained on with others."""
  rows = ["image,caption"]
  for i in range(12):
    (tmp_path / f"{i}.png").write_bytes(png(i))
    rows += [f"{i}.png,thing {i} said {k}" for k in range(5)]
  (tmp_path / "c.csv").write_text("\n".join(rows))
  used = templates.choose(count=40, held_out=0.5)
  source = open_(tmp_path, "auto", "c.csv")
  said = builder.from_templates(source, tmp_path / "made", used, 0)
  assert "48 records were skipped: record 1: the image of record 0" in said
  trained, held_out = (
    [i for e in json.loads(text) for i in e["images"]]
    for text in ((tmp_path / "made" / f"{name}.json").read_text()
                 for name in ("train", "held_out"))
  )  # fmt: skip
  assert trained and held_out
  assert len({*trained, *held_out}) == len(trained) + len(held_out) == 12


def test_templates_make_files_that_the_reader_reads(captions, tmp_path):
  source, folder = captions
  used = templates.choose(count=40, held_out=0.2)
  said = builder.from_templates(source, folder, used, 3)
  assert "1 records were skipped: record 7: the caption is empty" in said
  listed = {
    name: json.loads((folder / name).read_text())
    for name in ("train.json", "held_out.json", "templates.json")
  }
  numbers = {}
  for name, some in (("train", used.prompts), ("held_out", used.held_out)):
    for entry in listed[f"{name}.json"]:
      asked, answered = (m["content"] for m in entry["messages"])
      (image,) = entry["images"]
      number = image.removesuffix(".png").rpartition("/")[2]
      numbers[int(number)] = name
      caption = f"a bird number{number}"
      assert asked in [templates.fill(t, caption) for t in some]
      answered = answered.removesuffix(" <image_gen>")
      assert answered in [templates.fill(t, caption) for t in used.answers]
  assert sorted(numbers) == [i for i in range(30) if i != 7]
  assert set(numbers.values()) == {"train", "held_out"}
  assert listed["templates.json"]["held_out"] == list(used.held_out)
  read = open_(tmp_path, "sharegpt", "made/train.json")
  assert len(read) == len(listed["train.json"]) and not read.bad
  user, text, image = read[0].dialogue
  assert image.image == png(int(list(numbers)[0])) and image.target
  assert (user.target, text.target, text.role) == (False, True, "assistant")
  # Again elsewhere: the same bytes; in the same place: refused.
  builder.from_templates(source, tmp_path / "again", used, 3)
  for name in listed:
    again = (tmp_path / "again" / name).read_bytes()
    assert again == (folder / name).read_bytes()
  with pytest.raises(ValueError, match="train.json exists: delete it"):
    builder.from_templates(source, folder, used, 3)


def test_images_without_files_are_written(captions, tmp_path, monkeypatch):
  source, folder = captions
  monkeypatch.setattr(source, "image_path", lambda i: "")
  builder.from_templates(source, folder, templates.choose(count=40), 0)
  read = open_(folder, "sharegpt", "train.json")
  assert not read.bad and (folder / "images/0000/0000003.png").is_file()
  assert read[0].dialogue[-1].image == png(0)


def test_replies_become_files(captions, tmp_path):
  source, folder = captions
  used = templates.choose(count=40, held_out=0.2)
  said = builder.write_requests(source, folder, templates.POOLS, used, 0)
  assert "wrote 29 requests" in said
  rows = [json.loads(x) for x in (folder / "requests.jsonl").open()]
  replies = [
    {"id": r["id"], "reply": reply(f"Draw {r['caption']}")} for r in rows[3:]
  ]
  replies[0]["reply"] = "no"
  path = tmp_path / "replies.jsonl"
  path.write_text("\n".join(map(json.dumps, replies)) + "\n\n")
  said = builder.from_replies(folder, str(path))
  held = sum(r["held_out"] for r in rows[4:])
  assert f"wrote {25 - held} dialogues" in said and f"{held} held out" in said
  assert "1 replies were rejected, 3 requests have none" in said
  again = [json.loads(x)["id"] for x in (folder / "again.jsonl").open()]
  assert again == [r["id"] for r in (*rows[:3], rows[3])]
  (bad,) = map(json.loads, (folder / "rejected.jsonl").open())
  assert bad["id"] == rows[3]["id"] and "not JSON" in bad["reason"]
  read = open_(tmp_path, "sharegpt", "made/train.json")
  assert len(read) == 25 - held and not read.bad
  assert read[0].dialogue[1].text == "Here it is."
  # More replies: all four files are written anew.
  more = [{"id": r["id"], "reply": reply(f"Draw {r['caption']}")} for r in rows]
  path.write_text("\n".join(map(json.dumps, [*replies, *more])))
  assert "0 replies were rejected, 0 requests" in builder.from_replies(
    folder, str(path)
  )
  for text, message in (
    ("{", r"replies.jsonl:1 is not JSON"),
    ('{"id": "1"}', "replies.jsonl:1 has no 'reply': each line is an object"),
    ("", "no reply can be used: there are none"),
    (json.dumps(replies[0]), "no reply can be used: not JSON"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      builder.from_replies(folder, str(path))
  with pytest.raises(ValueError, match="make it with --form=requests first"):
    builder.from_replies(tmp_path, str(path))


def test_conversations_that_no_reader_takes_are_never_written():
  from unifluid_jax.data.instructions import written

  with pytest.raises(ValueError, match="2 placeholders"):
    written.drawn("draw <image>", "here", "a.png")
  assert conversation.DRAWN in written.drawn("draw", "here", "a.png")[
    "messages"
  ][1]["content"]  # fmt: skip
