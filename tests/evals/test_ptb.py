"""Both tokenizers against one table, and which of them is used when."""

import importlib
import importlib.machinery
import json
import shutil
import stat

import numpy as np
import pytest
from etils import epath

from configs import debug
from configs import transfer as transfer_config
from tests import task_sets
from unifluid_jax import systems
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.transfers import tasks
from unifluid_jax.data.worlds import shapes, shapes_text
from unifluid_jax.evals import transfers
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.metrics import captions, ptb
from unifluid_jax.evals.report import data as report_data
from unifluid_jax.evals.worlds import text_suite

JAVA, JAR = shutil.which("java"), ptb._find_jar()
needs_java = pytest.mark.skipif(
  not (JAVA and JAR),
  reason="needs Java, and pycocoevalcap: pip install -e '.[java_ptb]'",
)
# As the Stanford tokenizer 3.4.1 gives them, less pycocoevalcap's punctuation.
CASES = [
  ('A Red circle.',
   'a red circle'),
  ("Don't hit the dog's (red) t-shirt!",
   "do n't hit the dog 's -lrb- red -rrb- t-shirt"),
  ("It's 3.5 ft... -- at 10:30 a.m., Mr. Smith cannot",
   "it 's 3.5 ft. at 10:30 a.m. mr. smith can not"),
  ('"Hey" \'you\'; ``dogs\'\' - 1,000 cats',
   'hey you dogs 1,000 cats'),
  ('-LRB- x -RRB- rock & roll: {y} [z]',
   '-lrb- x -rrb- rock & roll -lcb- y -rcb- -lsb- z -rsb-'),
  ('',
   ''),
  (' ?!,;: ',
   '?!'),
  ("Café o'clock 5% €5 £20 25¢ ½ cup",
   "café o'clock 5 % $ 5 # 20 25 cents 1/2 cup"),
  ('“A cat” – ‘on’ a mat — the dogs’ mat…',
   'a cat on a mat the dogs mat'),
  ('a U.S. flag, an R.V, Washington D.C., J.K. Rowling',
   'a u.s. flag an r.v washington d.c. j.k. rowling'),
  ('a Ph.D. at 5th Ave. and Elm St',
   'a ph.d. at 5th ave. and elm st'),
  ('a Ph.D. at 5th Ave. and Elm St.',
   'a ph.d. at 5th ave. and elm st.'),
  ('plan B. is no. 5 of plan C',
   'plan b. is no. 5 of plan c'),
  ('No. No. 10 Downing St. is not no.',
   'no no. 10 downing st. is not no'),
  ('Acme Inc. and Bros. of Miss. Ill. people feel ill.',
   'acme inc. and bros. of miss. ill. people feel ill'),
  ('his/her AC/DC poster, on/off at 60km/h, 24/7',
   'his/her ac/dc poster on/off at 60km/h 24/7'),
  ('see www.example.com/x?y=1, joe.smith@example.com or example.co.uk.',
   'see www.example.com/x?y=1 joe.smith@example.com or example.co.uk'),
  ('@joe #surfing #1 fan # 5',
   '@joe #surfing # 1 fan # 5'),
  ("AT&T, R&B and M&M's, not at&t",
   "at&t r&b and m&m 's not at & t"),
  ('-5 degrees to +5, 2+2=4, .5 inch, 10-20',
   '-5 degrees to +5 2 +2 = 4 .5 inch 10-20'),
  ('a 3.5-inch 100,000-seat 1/2-mile 20-year-old',
   'a 3.5-inch 100,000-seat 1/2-mile 20-year-old'),
  ('12/25/2010 at 12:00:30 on 5-10-2010',
   '12/25/2010 at 12:00:30 on 5-10-2010'),
  ('What?? Stop!! why?! a!b',
   'what ?? stop !! why ?! a!b'),
  ("the '90s style, rock 'n' roll, fish 'n chips, '68",
   "the '90s style rock 'n' roll fish 'n chips '68"),
  ("get 'em, got'em, 'til 'tis 'twas 'cause",
   "get 'em got 'em 'til 't is 't was 'cause"),
  ("she'd've, shouldn't've, I'm, we'll, they're, who's",
   "she 'd 've should n't 've i 'm we 'll they 're who 's"),
  ("ain't gonna wanna gotta gimme lemme y'all",
   "ai n't gon na wan na got ta gim me lem me y' all"),
  ("O'Brien's o'clock ma'am c'mon",
   "o'brien 's o'clock ma'am c'mon"),
  ('x_y __init__ _a',
   'x_y __ init __ _ a'),
  ('a..b a. . . b a---b a--b a--',
   'a. b a. b a b a b a'),
  ('1st 2nd 80s 10am 5pm-6pm F-16s X-Ray',
   '1st 2nd 80s 10am 5pm-6pm f-16s x-ray'),
  ('6\'2" man, 8x10" photo, 30"x40"',
   '6 2 man 8x10 photo 30 x40'),
  ('$5.99 $100 5$ 100%',
   '$ 5.99 $ 100 5 $ 100 %'),
  ('left - right, left-right, left -right, left- right',
   'left right left-right left right left right'),
  ('emoji 😀 here, 日本語 кошка',
   'emoji here 日本語 кошка'),
  ('e.g. cats, dogs, etc. and so on',
   'e.g. cats dogs etc. and so on'),
  ('a \'STOP\' sign "STOP".',
   'a stop sign stop'),
  ("the boys' bikes; James's hat: fine",
   "the boys bikes james 's hat fine"),
  ('approx. 16 oz. of milk, 5 lbs. and 3 ft. long',
   'approx 16 oz of milk 5 lbs and 3 ft. long'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tokens"), CASES)
def test_own(text, tokens):
  assert ptb.own([text]) == [tokens.split()]


@needs_java
def test_stanford():
  texts, tokens = zip(*CASES, strict=True)
  found = ptb.stanford(JAVA, JAR, texts)
  assert found == [t.split() for t in tokens]
  theirs = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
  asked = {i: [{"caption": text}] for i, text in enumerate(texts)}
  given = theirs.PTBTokenizer().tokenize(asked)
  assert [" ".join(t) for t in found] == [given[i][0] for i in asked]


@needs_java
def test_stanford_keeps_texts_apart():
  texts = ["", "a\r\nb", "c\rd\u2028e\x85", "\n", "1 1/2", "é", ""]
  assert ptb.stanford(JAVA, JAR, texts) == [
    [], ["a", "b"], ["c", "d", "e"], [], ["1\u00a01/2"], ["é"], []
  ]  # fmt: skip


@needs_java
def test_the_embedded_worlds_captions_are_the_same_either_way():
  world, rng = shapes.World(), np.random.default_rng(0)
  texts = []
  for _ in range(300):
    scene = shapes.sample_scene(world, rng, "train")
    texts += [shapes_text.caption(scene), shapes_text.prompt(scene, rng)]
  assert ptb.own(texts) == ptb.stanford(JAVA, JAR, texts)
  assert len({tuple(t) for t in ptb.own(texts)}) > 100


def test_own_takes_line_breaks_for_spaces_and_one_apostrophe():
  assert ptb.own(["a\ncat\r\nsits", "12 o’clock"]) == [
    ["a", "cat", "sits"], ["12", "o'clock"]
  ]  # fmt: skip


# ------------------------------------------------------------------ the choice


@pytest.fixture
def installed(tmp_path, monkeypatch):
  """A function that sets what is installed, and gives what is then chosen."""

  def choose(java, package, jar):
    folder = tmp_path / "pycocoevalcap" / "tokenizer"
    folder.mkdir(parents=True)
    if jar:
      (folder / "stanford-corenlp-3.4.1.jar").write_bytes(b"")
    spec = importlib.machinery.ModuleSpec("pycocoevalcap", None)
    spec.submodule_search_locations = [str(folder.parent)]
    monkeypatch.setattr(
      ptb.importlib.util, "find_spec", lambda _: spec if package else None
    )
    monkeypatch.setattr(ptb.shutil, "which", lambda _: java)
    return ptb.chosen.__wrapped__()

  return choose


@pytest.mark.parametrize(
  "java, package, jar",
  [(None, True, True), ("java", False, True), ("java", True, False)],
)
def test_ours_where_anything_lacks(installed, java, package, jar):
  chosen = installed(java, package, jar)
  assert chosen.tokenize is ptb.own and chosen.name.startswith("own regex")


def program(path, script):
  path.write_text(f"#!/bin/sh\n{script}\n")
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return str(path)


def test_java_where_both_are_there(installed, tmp_path):
  """Called as pycocoevalcap calls it; a stand-in for Java tells how."""
  said = tmp_path / "said"
  java = program(tmp_path / "java", f'echo "$@" > {said}; cat')
  chosen = installed(java, True, True)
  assert chosen.name.startswith("Stanford PTBTokenizer 3.4.1 in Java")
  assert chosen.tokenize(["a ( b . , c", "", "d"]) == [
    ["a", "(", "b", "c"], [], ["d"]
  ]  # fmt: skip
  flag, jar, *rest = said.read_text().split()
  assert flag == "-cp" and jar.endswith("stanford-corenlp-3.4.1.jar")
  assert rest == [
    "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"
  ]  # fmt: skip


@pytest.mark.parametrize(
  "script, message",
  [
    ("cat; echo no memory >&2; exit 1", "for 2 texts, status 1 .no memory."),
    ("head -n 1", "gave 1 lines for 2 texts"),
  ],
)
def test_a_failing_java_is_an_error_not_ours(
  installed, tmp_path, script, message
):
  chosen = installed(program(tmp_path / "java", script), True, True)
  with pytest.raises(RuntimeError, match=message):
    chosen.tokenize(["a", "b"])


def test_one_choice_a_process():
  assert ptb.chosen() is ptb.chosen()


# ------------------------------------------------------------ what is reported


@pytest.fixture
def shouted(monkeypatch):
  """Another tokenizer is chosen: one token a text."""
  way = ptb.Tokenizer("whole", lambda texts: [[t] for t in texts])
  monkeypatch.setattr(ptb, "chosen", lambda: way)


class Parrot:
  """Says one thing about every image."""

  def answers(self, images, questions):
    return ["a red dog"] * len(images)

  def look(self, record):
    return decode_image(record.image)

  def images(self, prompts, seeds):
    raise AssertionError("captions draw nothing")

  edits = reconstruct = images


def test_scores_and_their_settings_come_from_one_choice(shouted, tmp_path):
  # One unigram that is right: 10 / 4; as words, two orders more would count.
  references = {0: ["a red dog"], 1: ["a cat"]}
  score, found = captions.cider_d(references, {0: "a red dog", 1: "a dog"})
  assert found == {0: pytest.approx(2.5), 1: 0}
  task_sets.write(tmp_path / "textcaps", task_sets.SETS["textcaps"]())
  c = transfer_config.get_config("textcaps,debug")
  c.data.root = str(tmp_path)
  bench = Bench(systems.resolve(c), "")
  outcome = transfers.transfer(Parrot(), bench)
  assert outcome.settings["textcaps"]["tokenizer"] == "whole"


def test_the_text_suite_names_it(shouted):
  bench = Bench(systems.resolve(debug.get_config()), "")
  bench.splits = ()
  settings = text_suite.captions(Parrot(), bench).settings
  assert settings["tokenizer"] == "whole"


def test_no_average_over_captions_tokenized_differently():
  def result(row, way):
    decode = f"beam {row.beam}" if row.beam > 1 else "greedy"
    found = dict(split=row.split, decode=decode, unanswered=0, limit=0)
    return transfers.Result(1.0, 9, "x", found | {"tokenizer": way})

  rows = [row for row in tasks.ROWS if row.group == "caption"]
  same = transfers.table({row.name: result(row, "a") for row in rows})
  assert same.cap_avg == 100
  mixed = {row.name: result(row, "ab"[i % 2]) for i, row in enumerate(rows)}
  table = transfers.table(mixed)
  assert table.cap_avg is None and "tokenized in several ways" in table.text
  assert table.text.endswith("CIDEr-D tokenizer: a\nCIDEr-D tokenizer: b")


def test_the_report_says_where_steps_differ(tmp_path, monkeypatch):
  pages = []
  monkeypatch.setattr(
    report_data.report, "write_report", lambda _, data: pages.append(data)
  )
  rows = [
    {"step": step, "metric": "captions/cider_d", "value": 1.0, "floor": 0.0,
     "settings": {"tokenizer": way}}
    for step, way in ((1, "a"), (2, "a"), (3, "b"))
  ]  # fmt: skip
  (tmp_path / "metrics.jsonl").write_text("")
  for count in (2, 3):
    (tmp_path / "metrics_eval.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows[:count])
    )
    report_data.write(epath.Path("r.html"), str(tmp_path), "r", {}, {})
  alike, mixed = (" ".join(page.notes) for page in pages)
  assert "different ways" not in alike
  assert "different ways at different steps: a; b" in mixed
