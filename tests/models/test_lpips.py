import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.models import lpips

distance = jax.jit(lpips.distance)


@pytest.fixture(scope="module")
def arrays():
  rng = np.random.default_rng(0)
  out = {}
  for name, shape in lpips.shapes().items():
    values = rng.standard_normal(shape, np.float32)
    if name.startswith("lin"):
      out[name] = np.abs(values) / 10
    elif name.endswith("bias"):
      out[name] = values / 10
    else:
      out[name] = values * np.sqrt(2 / np.prod(shape[:3])).astype(np.float32)
  return out


@pytest.fixture(scope="module")
def params(arrays, tmp_path_factory):
  path = tmp_path_factory.mktemp("lpips") / "vgg.npz"
  np.savez(path, **arrays)
  return lpips.load_lpips(path)


@pytest.fixture(scope="module")
def pair():
  rng = np.random.default_rng(1)
  x, y = rng.uniform(-1, 1, (2, 2, 16, 18, 3)).astype(np.float32)
  return jnp.asarray(x), jnp.asarray(y)


def ref_features(arrays, images):
  """The five ReLU stages of VGG16, by patches and matrix products."""
  x = (images - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
  stages = []
  for s, depth in enumerate((2, 2, 3, 3, 3), 1):
    if s > 1:
      b, h, w, d = x.shape
      x = x[:, : h // 2 * 2, : w // 2 * 2]
      x = x.reshape(b, h // 2, 2, w // 2, 2, d).max((2, 4))
    for i in range(1, depth + 1):
      kernel = arrays[f"conv{s}_{i}/kernel"]
      padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      windows = np.lib.stride_tricks.sliding_window_view(
        padded, (3, 3), axis=(1, 2)
      )  # B, rows, columns, in, 3, 3
      x = np.tensordot(windows, kernel, ((4, 5, 3), (0, 1, 2)))
      x = np.maximum(x + arrays[f"conv{s}_{i}/bias"], 0)
    stages.append(x)
  return stages


def test_shapes_are_those_of_vgg16():
  sizes = {k: np.prod(v) for k, v in lpips.shapes().items()}
  vgg = sum(v for k, v in sizes.items() if k.startswith("conv"))
  assert vgg == 14_714_688
  assert sum(sizes.values()) - vgg == 64 + 128 + 256 + 512 + 512


def test_distance_equals_its_formula(arrays, params, pair):
  expected = np.zeros(2)
  stages = zip(
    *(ref_features(arrays, np.asarray(x)) for x in pair), strict=True
  )
  for k, (a, b) in enumerate(stages):
    a = a / (np.linalg.norm(a, axis=-1, keepdims=True) + 1e-10)
    b = b / (np.linalg.norm(b, axis=-1, keepdims=True) + 1e-10)
    weighted = (a - b) ** 2 @ arrays[f"lin_{k}/kernel"]
    expected += weighted.mean((1, 2))
  out = distance(params, *pair)
  np.testing.assert_allclose(out, expected, rtol=1e-4)


def test_equal_images_have_distance_zero_and_order_does_not_matter(
  params, pair
):
  x, y = pair
  # Both rows at once: row 0 compares equal images, row 1 different ones.
  y = y.at[0].set(x[0])
  forward, backward = distance(params, x, y), distance(params, y, x)
  assert abs(float(forward[0])) < 1e-12 and float(forward[1]) > 0.01
  np.testing.assert_allclose(forward, backward, rtol=1e-5)


def test_unit_features_have_no_gradient_where_all_channels_vanish():
  x = jnp.zeros((1, 2, 2, 3)).at[0, 1, 1].set(jnp.array([3.0, 0, 4]))
  np.testing.assert_allclose(lpips.unit(x)[0, 1, 1], [0.6, 0, 0.8], rtol=1e-6)
  grad = jax.grad(lambda x: (lpips.unit(x) ** 2).sum())(x)
  np.testing.assert_allclose(grad, 0, atol=1e-6)
  np.testing.assert_array_equal(lpips.unit(x)[0, 0, 0], 0)


def write(path, arrays):
  np.savez(path, **arrays)
  return path


def test_wrong_files_are_refused_by_name(tmp_path):
  empty = {"conv1_1/kernel": np.zeros((3, 3, 3, 64), np.float32)}
  path = tmp_path / "w.npz"
  with pytest.raises(ValueError, match="lacks 'conv1_1/bias'"):
    lpips.load_lpips(write(path, empty))
  turned = {"conv1_1/kernel": np.zeros((64, 3, 3, 3), np.float32)}
  with pytest.raises(ValueError, match=r"conv1_1/kernel.*\(64, 3, 3, 3\)"):
    lpips.load_lpips(write(path, turned))
  with pytest.raises(ValueError, match="'lin5'"):
    lpips.load_lpips(write(path, empty | {"lin5": np.zeros(3)}))
  pickled = {"conv1_1/kernel": np.array([{}], dtype=object)}
  with pytest.raises(ValueError, match="allow_pickle"):
    lpips.load_lpips(write(path, pickled))


def test_small_images_are_refused_with_the_fix():
  x = jnp.zeros((1, 15, 32, 3))
  with pytest.raises(ValueError, match="16 pixels or more"):
    lpips.distance({}, x, x)
