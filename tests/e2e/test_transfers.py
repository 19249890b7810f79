"""Every transfer task from its raw files to its number, at toy size.

One tiny model serves all of them, so that two programs are compiled for
training and two for answering: for questions about one image and about two.
"""

import json

import jax
import numpy as np
import pytest

from configs import transfer
from tests import task_sets, text_rows
from unifluid_jax import api, systems, train
from unifluid_jax.data import pipeline, text
from unifluid_jax.data.transfers import tasks
from unifluid_jax.evals import transfers
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.report import run_results

RUNS = tuple(dict.fromkeys(row.run for row in tasks.ROWS))
BATCH = 4


def config_of(run, root):
  c = transfer.get_config(f"{run},debug")
  c.batch.i2t = BATCH
  c.data.root = root
  c.data.threads = 1
  c.text.update(prefix=56, suffix=16)
  c.model.decoder.depth = 1
  c.sampling.text = "greedy"
  return systems.resolve(c)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return str(task_sets.make(tmp_path_factory.mktemp("sets")))


@pytest.fixture(scope="module")
def tokenizer(root, tmp_path_factory):
  """Of all that is asked and answered, as examples spell it."""
  said = []
  for row in tasks.ROWS:
    for example in tasks.read(row, root, row.split):
      said += [tasks.prompt(row, example), *tasks.targets(row, example)]
  path = tmp_path_factory.mktemp("text") / "t.model"
  return text.train(said * 3 + ["The answer is C."], path, 192)


@pytest.fixture(scope="module")
def trained(root, tokenizer):
  """A model after two steps of every task, and what the steps saw."""
  c = config_of("infovqa", root)  # smoothed, decayed
  job = train.make_job(c, systems.build(c), jax.devices()[:1])
  seen = {}
  with jax.set_mesh(job.mesh):
    # By numpy: compiling `init` would take as long as compiling a step.
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), job.shapes)
    rng = np.random.default_rng(0)
    before = jax.tree.map(
      lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), state.params
    )
    state = jax.device_put(state._replace(params=before), job.shardings)
    for run in RUNS:
      config = config_of(run, root)
      inputs = systems.build(config).inputs
      loader = pipeline.make_loader(config, inputs, tokenizer)
      batches = [next(loader) for _ in range(2)]
      loader.close()
      losses = []
      for batch in batches:
        state, metrics = job.step(state, {}, batch)
        losses.append(metrics["loss"])
      seen[run] = batches, np.asarray(jax.device_get(losses))
  assert job.step._cache_size() == 2  # one image, and two
  model = api.Model(
    c, job.system, tokenizer, api.jitted(state.params, {}, BATCH)
  )
  return model, seen, before, jax.device_get(state.params)


@pytest.mark.parametrize("run", RUNS)
def test_batches_hold_questions_with_right_answers(root, tokenizer, trained,
                                                   run):  # fmt: skip
  batches, losses = trained[1][run]
  assert np.isfinite(losses).all() and (losses > 0).all()
  row = tasks.rows(run)[0]
  right = set()
  for split in row.train:
    for e in tasks.read(row, root, split):
      orders = [()]
      if row.target == "letter":
        n = len(e.choices)
        orders = [[k % n, (k + 1) % n, (k + 2) % n] for k in range(n)]
        orders += [order[::-1] for order in orders]
      right |= {
        (tasks.prompt(row, e, order), answer)
        for order in orders
        for answer in tasks.targets(row, e, order)
      }
  # The tokenizer's round trip turns line breaks and tabs into its own.
  known = {
    (tokenizer.decode(text_rows.prefix(tokenizer, q, 56)),
     tokenizer.decode(text_rows.suffix(tokenizer, a, 16))) for q, a in right
  }  # fmt: skip
  for batch in batches:
    frames = () if row.images == 1 else (row.images,)
    i2t = batch["i2t"]
    assert i2t["seen"].shape == (BATCH, *frames, 32, 32, 3)
    for prefix, suffix in zip(i2t["prefix"], i2t["suffix"], strict=True):
      assert (tokenizer.decode(prefix), tokenizer.decode(suffix)) in known


def test_steps_train_what_answers_and_leave_what_draws(trained):
  _, _, before, after = trained

  def moved(part):
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[part],
                          after[part])  # fmt: skip
    return max(jax.tree.leaves(change))

  assert min(moved(p) for p in ("decoder", "vit", "projector")) > 0
  assert moved("image") == moved("head") == 0


def test_every_row_gets_its_number(root, trained, tmp_path):
  model = trained[0]
  for run in RUNS:
    config = config_of(run, root)
    outcome = transfers.transfer(model, Bench(config, ""))
    (tmp_path / run).mkdir()
    rows = run_results.as_rows(40, outcome, config)
    rows = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / run / "metrics_eval.jsonl").write_text("".join(rows))
  results = transfers.collect(transfers.workdirs_below(str(tmp_path)))
  assert set(results) == {row.name for row in tasks.ROWS}
  assert all(0 <= r.value <= 10 for r in results.values())
  table = transfers.table(results)
  # Beam search was left out above, and the table says so.
  assert table.missing == ("cococap", "textcaps")
  assert table.cap_avg is None
  captions = ("cococap", "textcaps", "screen2words", "widgetcap")
  values = [r.value for name, r in results.items() if name not in captions]
  np.testing.assert_allclose(table.qa_avg, 100 * np.mean(values))
