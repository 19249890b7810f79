"""Starting from converted weights and from another run."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_train import Toy, go, make
from tests.weights import helpers
from unifluid_jax import train
from unifluid_jax.core import checkpoint, config, presets
from unifluid_jax.weights import convert, new_rows, warm_start


class Two(Toy):
  """A decoder's table beside the toy's projector."""

  rows = 6

  def init(self, key):
    table = jax.random.normal(key, (self.rows, 3))
    return super().init(key) | {"decoder": {"embedder": {"table": table}}}


def start(job, workdir):
  with jax.set_mesh(job.mesh):
    restored, rung = train.restore_or_init(job, str(workdir), {})
  return restored.state, rung


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The workdir of a finished run, and its parameters."""
  path = tmp_path_factory.mktemp("trained")
  return path, go(make(path, Two()), path).params


def test_whole_run_and_its_average(trained, tmp_path):
  path, params = trained
  job = make(tmp_path, Two(), init__all=str(path), seed=5)
  state, rung = start(job, tmp_path / "w")
  for got in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, got, params)
  placed = state.params["projector"]["kernel"].sharding
  assert placed == job.shardings.params["projector"]["kernel"]
  assert rung.startswith("2: ") and f"from {path} step 8" in rung
  assert int(state.step) == 0
  go(job, tmp_path / "w2")  # both can be donated


def test_an_exported_model_is_no_run(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  job = make(tmp_path, Two(), init__all=str(tmp_path))
  with pytest.raises(
    checkpoint.CheckpointError, match="name its workdir, or what"
  ):
    start(job, tmp_path / "w")


def test_part_of_a_run_needs_the_rest_listed(trained, tmp_path):
  path, params = trained
  job = make(tmp_path, Two(), init__projector=str(path), seed=5)
  with pytest.raises(config.ConfigError, match=r"not decoder/.*'new'"):
    start(job, tmp_path / "a")
  job = make(
    tmp_path, Two(), init__projector=str(path), init__decoder="new", seed=5
  )
  state, rung = start(job, tmp_path / "b")
  assert "fresh: decoder" in rung
  got, want = state.params["projector"], params["projector"]
  jax.tree.map(np.testing.assert_array_equal, got, want)
  a = state.params["decoder"]["embedder"]["table"]
  assert not np.array_equal(a, params["decoder"]["embedder"]["table"])


def test_a_part_may_have_another_name_there(trained, tmp_path):
  """All of it but what starts fresh, or is too large or too small there."""
  path, params = trained

  class Named(Two):
    def init(self, key):
      found = super().init(key)
      kernel = found["projector"].pop("kernel")
      return found | {"out": {"kernel": kernel, "bias": jnp.ones((4,))}}

  shapes = jax.eval_shape(Named().init, jax.random.key(0))
  fresh = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)

  def load(**init):
    given = {"decoder": "new", "projector": "new"} | init
    return warm_start.load(given, fresh, shapes, Named.parts)

  part = f"{path}#projector"
  got, notes = load(**{"out": part, "out/bias": "new"})
  want = params["projector"]
  np.testing.assert_array_equal(got["out"]["kernel"], want["kernel"])
  np.testing.assert_array_equal(got["out"]["bias"], fresh["out"]["bias"])
  assert notes[0].startswith(f"out: projector from {path} step 8")
  got, _ = load(out=part)
  jax.tree.map(np.testing.assert_array_equal, got["out"], want)
  with pytest.raises(config.ConfigError, match="one part is read from a part"):
    load(out=part, projector=part)


@pytest.mark.parametrize("rows", [4, 9])
def test_vocabulary_rows_are_cut_or_added(trained, tmp_path, rows):
  path, params = trained
  toy = Two()
  toy.rows = rows
  state, rung = start(make(tmp_path, toy, init__all=str(path)), tmp_path / "w")
  got = np.asarray(state.params["decoder"]["embedder"]["table"])
  want = np.asarray(params["decoder"]["embedder"]["table"])
  n = min(rows, 6)
  np.testing.assert_array_equal(got[:n], want[:n])
  assert ("2 vocabulary rows left out" if rows == 4
          else "3 vocabulary rows fresh") in rung  # fmt: skip
  if rows == 9:
    assert 0 < np.abs(got[6:]).max() < 0.1


def test_new_rows_are_near_the_mean_of_the_old(trained, tmp_path):
  """Drawn from N(mean, 1e-9 covariance), by the configuration's seed."""
  path, params = trained
  toy = Two()
  toy.rows = 9
  old = np.asarray(params["decoder"]["embedder"]["table"])
  found = []
  for name, seed in (("a", 1), ("b", 1), ("c", 2)):
    job = make(tmp_path, toy, init__all=str(path), new_rows="mean", seed=seed)
    state, _ = start(job, tmp_path / name)
    table = np.asarray(state.params["decoder"]["embedder"]["table"])
    np.testing.assert_array_equal(table[:6], old)
    found.append(table[6:])
  np.testing.assert_array_equal(found[0], found[1])
  assert np.abs(found[0] - found[2]).max() > 1e-6
  noise = np.abs(found[0] - old.mean(0)) / old.std(0)
  assert 1e-6 < noise.max() < 5e-9**0.5 * 5


@pytest.mark.parametrize("rows", [40, 3], ids=["many", "fewer than axes"])
def test_noise_of_new_rows_has_the_covariance_of_the_old(rows):
  rng = np.random.default_rng(0)
  table = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 4))
  table = (table * 0.3 + [0.3, 0, -0.2, 0.1]).astype(np.float32)
  drawn = new_rows.near_mean(jnp.asarray(table), 20_000, jax.random.key(0))
  drawn = np.asarray(drawn, np.float64)
  np.testing.assert_allclose(drawn.mean(0), table.mean(0), atol=2e-6)
  got = np.cov((drawn - table.mean(0)).T, bias=True) / 1e-9
  want = np.cov(table.T.astype(np.float64), bias=True)
  np.testing.assert_allclose(got, want, atol=0.03 * np.abs(want).max())


@pytest.mark.parametrize("rule", ["mean", "random"])
def test_input_and_output_tables_draw_apart(rule):
  old, like = np.eye(5, 3, dtype=np.float32), np.zeros((7, 3), np.float32)
  a, b = (new_rows.fit(old, like, name, rule, 0)[5:] for name in "ab")
  assert np.abs(a - b).max() > 1e-6
  other = new_rows.fit(old, like, "a", rule, 1)[5:]
  assert np.abs(a - other).max() > 1e-6


def test_missing_weights_are_an_error(tmp_path):
  job = make(tmp_path, Two(), init__all=str(tmp_path / "nowhere"))
  with pytest.raises(checkpoint.CheckpointError, match="nowhere"):
    start(job, tmp_path / "w")


def test_wrong_shapes_and_unknown_parts_are_named(trained, tmp_path):
  path, _ = trained

  class Wide(Two):
    def init(self, key):
      tree = super().init(key)
      return tree | {"projector": {"kernel": jnp.zeros((8, 4)),
                                   "bias": jnp.zeros((5,))}}  # fmt: skip

  shapes = jax.eval_shape(Wide().init, jax.random.key(0))
  wrong = r"projector/bias: there \(4,\), here \(5,\)"
  with pytest.raises(checkpoint.CheckpointError, match=wrong):
    warm_start.load({"all": str(path)}, shapes, shapes, Two.parts)
  init = {"all": str(path), "hed": "new"}
  with pytest.raises(config.ConfigError, match="'hed', the model has decoder"):
    warm_start.plan(init, shapes)


def test_the_longest_prefix_decides():
  shapes = jax.eval_shape(Two().init, jax.random.key(0))
  table, bias, kernel = (
    "decoder/embedder/table", "projector/bias", "projector/kernel"
  )  # fmt: skip
  init = {"all": "a", "projector": "p", "projector/bias": "b", "decoder": "d"}
  plan = warm_start.plan(init, shapes)
  assert plan == {table: "d", bias: "b", kernel: "p"}
  plan = warm_start.plan(init | {"projector/bias": "new"}, shapes)
  assert plan == {table: "d", kernel: "p"}
  init = {"all": "a", "projector": "", "decoder/embedder": "new"}
  assert warm_start.plan(init, shapes) == {bias: "a", kernel: "a"}


def test_none_says_loudly_that_all_is_fresh(tmp_path):
  job = make(tmp_path, Two())
  job = job._replace(config=dataclasses.replace(job.config, init={}))
  _, rung = start(job, tmp_path / "w")
  assert "no pretrained weights" in rung


def test_a_run_says_what_it_computes_otherwise(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(warm_start, "other_settings", lambda *_: ["caps differ"])
  job = make(tmp_path, Two(), init__all=str(trained[0]))
  assert start(job, tmp_path / "w")[1].endswith("; caps differ")


def test_other_settings_than_a_conversion_has_are_named(tmp_path):
  path = str(tmp_path / "ours")
  fixture = helpers.FIXTURES / "gemma2"
  convert.to_checkpoint(f"gemma:{fixture}", path, lambda line: None)
  same = presets.DecoderConfig(40, 24, 3, 32, 4, 2, 8, **helpers.OURS[2])
  init = {"decoder": path}

  def other_settings(init, decoder):
    model = types.SimpleNamespace(decoder=decoder)
    return warm_start.other_settings(init, model)

  assert other_settings(init, same) == []
  assert warm_start.other_settings({"all": path}, object()) == []
  assert other_settings({}, same) == []
  changed = dataclasses.replace(
    same, vocab=50, dropout=0.1, final_softcap=30.0, pattern=("global",)
  )
  (line,) = other_settings(init, changed)
  assert "--config.model.decoder.final_softcap=30.0 (there 1.5)" in line
  assert "pattern=('global',) (there ('local', 'global'))" in line
  assert line.count("--config") == 2 and path in line
  fresh = {"all": path, "decoder": "new"}
  assert other_settings(fresh, changed) == []


def test_other_settings_than_a_run_has_are_named(monkeypatch):
  """Its decoder's as a conversion's; what rows of its vocabulary stand for."""
  decoder = presets.DecoderConfig(40, 24, 3, 32, 4, 2, 8)
  there = {
    "tokenizer_sha256": "a" * 64,
    "config": {
      "model": {"decoder": dataclasses.asdict(decoder), "code_offset": 30},
      "text": {"special": {"boi": 7}},
    },
  }
  monkeypatch.setattr(checkpoint, "latest_step", lambda path: 8)
  monkeypatch.setattr(checkpoint, "read_meta", lambda path, step: there)
  changed = dataclasses.replace(decoder, attn_softcap=5.0, dropout=0.1)
  model = types.SimpleNamespace(decoder=changed, code_offset=30)
  (line,) = warm_start.other_settings({"all": "run"}, model)
  assert "attn_softcap=5.0 (there 0.0)" in line and line.count("--config") == 1

  def other_ids(special, offset=30, digest="a"):
    model.code_offset = offset
    table = "decoder/embedder/table"
    meta = {"tokenizer_sha256": digest * 64}
    return warm_start.other_ids({table: "run"}, (table,), special, model, meta)

  assert other_ids({"boi": 7, "end": 9}) == []
  (line,) = other_ids({"boi": 8}, 31, "b")
  assert "tokenizer aaaaaaaa, config.text.tokenizer is bbbbbbbb" in line
  assert "special.boi=7, here 8; config.model.code_offset=30, here 31" in line
