# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
RUN := runs/shapes

.PHONY: help setup demo demo-liquid demo-unitoken demo-vargpt emoji smoke test test-parity lint clean

help:
	@echo "make demo   set up, train and evaluate the embedded default (10 to 15 min)"
	@echo "make demo-liquid    the same data with image tokens from a vocabulary"
	@echo "make demo-unitoken  the same data, seen as discrete and continuous tokens"
	@echo "make demo-vargpt    the same data, drawn scale by scale; in the stages of its paper"
	@echo "make emoji  emoji of four artists, captioned and drawn (29 min); needs npm"
	@echo "make test   set up and run the tests"
	@echo "make smoke  every stage at its smallest"
	@echo "make test-parity  against PyTorch, transformers and diffusers"
	@echo "make lint   ruff"

setup: $(READY)

$(READY): setup.py requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "unifluid_jax needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint requirements.lock -e ".[test]"
	@touch $(READY)

demo: setup
	$(PY) -m unifluid_jax.demo --workdir=$(RUN)

demo-liquid: setup
	$(PY) -m unifluid_jax.demo --config=configs/liquid_shapes.py \
	  --vae_config=configs/tokenizer.py:shapes --workdir=$(RUN)/liquid

demo-unitoken: setup
	$(PY) -m unifluid_jax.demo --config=configs/unitoken_shapes.py \
	  --vae_config=configs/tokenizer.py:shapes --workdir=$(RUN)/unitoken

demo-vargpt: setup
	$(PY) -m unifluid_jax.demo --config=configs/vargpt_shapes.py \
	  --vae_config=configs/tokenizer.py:multiscale_shapes --workdir=$(RUN)/vargpt

emoji: setup
	$(PY) -m unifluid_jax.demo --config=configs/emoji.py \
	  --vae_config=configs/vae.py:emoji --workdir=runs/emoji

smoke: setup
	rm -rf runs/debug
	$(PY) -m unifluid_jax.prepare --config=configs/debug.py
	$(PY) -m unifluid_jax.main --config=configs/debug.py:vae --workdir=runs/debug/vae
	$(PY) -m unifluid_jax.encode --config=configs/debug.py
	$(PY) -m unifluid_jax.main --config=configs/debug.py --workdir=runs/debug
	$(PY) -m unifluid_jax.main --config=configs/debug.py --workdir=runs/debug --config.steps=24
	$(PY) -m unifluid_jax.evaluate --config=configs/debug.py --workdir=runs/debug --once
	$(PY) -m unifluid_jax.generate --workdir=runs/debug --prompt="a red circle" --out=runs/debug/sample.png
	$(PY) -m unifluid_jax.generate --workdir=runs/debug --image=runs/debug/sample.png --question="what colour is the circle"

# One process a core: most of the time is compilation, on one thread. Files in
# their order: by number of tests, those of few long ones would all come last.
test: setup
	$(PY) -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

test-parity: setup
	$(PY) -m pip install --quiet --constraint requirements.lock -e ".[test,parity]"
	$(PY) -m pytest tests/parity

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) runs build *.egg-info
