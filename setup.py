"""Installs unifluid_jax; exact versions of a tested set: requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
  name="unifluid_jax",
  version="0.1.0",
  description="UniFluid in JAX: unified autoregressive image generation and "
  "understanding with continuous tokens",
  long_description=Path(__file__).with_name("README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["unifluid_jax", "unifluid_jax.*", "configs"]),
  package_data={
    # Licences of the emoji world's pictures, which its data sets carry.
    "unifluid_jax": ["data/worlds/licences/*.txt"],
    # Models that ship with the package, with their licences.
    "unifluid_jax.boxed": ["*/*", "*/licenses/*"],
  },
  install_requires=[
    "absl-py",
    "array-record",
    "clu",
    "etils[epath]",
    "fsspec",
    "flax>=0.12",
    "grain",
    "jax>=0.10",
    "jaxtyping",
    "ml_dtypes",
    "ml_collections",
    "numpy",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pillow",
    "pyarrow",
    "scipy",
    "sentencepiece",
    "tensorboardX",
    "tensorstore",
    "tensorflow-datasets",
  ],
  extras_require={
    "test": [
      "beartype",
      "gcp-storage-emulator",
      "gcsfs",
      "gradio>=6",
      "ipykernel",
      "nbclient",
      "nbformat",
      "playwright",
      "pytest",
      "pytest-xdist",
      "resvg-py",
      "ruff",
      "setuptools",
    ],
    "app": ["gradio>=6"],
    "emoji": ["resvg-py"],  # draws the emoji world's pictures
    "hub": ["huggingface_hub"],  # unifluid_jax.export --push
    "gguf": ["gguf>=0.10"],  # weights --from=gguf:FILE of quantised tensors
    "parity": [
      "ray[data]",
      "accelerate",  # transformers reads GGUF files with it
      "gguf>=0.10",
      "tokenizers>=0.20",
      "torch==2.13.0",
      "transformers==5.23.0",
      "diffusers==0.42.1",
      "safetensors==0.8.0",
    ],
    "geneval": ["torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0"],
    "hf": ["tokenizers>=0.20"],  # text.tokenizer=tokenizer.json
    "ray": ["ray[data]"],  # prepare --ray
    "java_ptb": ["pycocoevalcap"],  # its Stanford tokenizer; Java comes apart
    "cuda": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "gcs": ["gcsfs"],  # paths that begin with gs://
    # What its data sets need; big_vision itself has no package: its checkout
    # (github.com/google-research/big_vision) goes on PYTHONPATH.
    "big_vision": ["einops", "overrides", "tensorflow"],
  },
)
