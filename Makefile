PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo-run

.PHONY: demo test test-real test-llamacpp test-reliability fuzz lint docs linkcheck bench format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# The CPU build of torch first: an unpinned torch brings gigabytes of GPU packages.
	# Modules are compiled when they are imported: most of these never are.
	$(BIN)/python -m pip install --quiet --no-compile $(shell grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,docs]'
	# It asks for transformers 4, and runs with 5.
	$(BIN)/python -m pip install --quiet --no-compile --no-deps $(shell grep '^steering-vectors==' constraints.txt)
	touch $@

demo: $(VENV)/.installed ## the main job on the embedded model
	$(BIN)/cosmic-tl run demo --out $(OUT) --batch-size 100 --overwrite

# One thread per process, because two of them on all cores would stall each other; files in the order of their names, so that the
# longest do not come last.
PYTEST := env -u COSMIC_TL_REAL_MODEL OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
# Where tensors are: there beartype checks the shapes of every signature, in examples and in tests. That takes twice as long, so
# that tests of whole selections do without.
TENSORS := directions generation interventions metrics model
SHAPES := $(addprefix cosmic_tl/,activations engine patching selection $(TENSORS)) $(addprefix tests/,$(TENSORS))

test: $(VENV)/.installed ## all tests but those on a real model
	$(PYTEST) --jaxtyping-packages=cosmic_tl,beartype.beartype $(SHAPES)
	$(PYTEST) $(addprefix --ignore=,$(SHAPES))

test-real: $(VENV)/.installed ## the toolkit on your model: MODEL=directory or hub id, PROMPTS=file, N=prompts per side, ARGS=for pytest, THREADS=number
	@test -n "$(MODEL)" || { echo 'Give a model: make test-real MODEL=path/or/hub-id [PROMPTS=file.json] [N=32]'; exit 2; }
	# One process, which has the model once and all cores.
	env -u OMP_NUM_THREADS $(if $(THREADS),OMP_NUM_THREADS=$(THREADS)) COSMIC_TL_REAL_MODEL="$(MODEL)" COSMIC_TL_REAL_PROMPTS="$(PROMPTS)" COSMIC_TL_REAL_N="$(N)" \
		$(BIN)/python -m pytest tests/real -n0 --durations=10 $(ARGS)

test-llamacpp: $(VENV)/.installed ## an exported control vector in llama.cpp itself: MODEL=file.gguf, ARGS=for pytest; builds llama-cpp-python
	@test -f "$(MODEL)" || { echo 'Give a model: make test-llamacpp MODEL=path/to/model.gguf'; exit 2; }
	$(BIN)/python -c 'import llama_cpp' 2>/dev/null || $(BIN)/python -m pip install --quiet 'llama-cpp-python>=0.3.17'
	env -u OMP_NUM_THREADS COSMIC_TL_LLAMACPP_MODEL="$(MODEL)" $(BIN)/python -m pytest tests/llamacpp -n0 --durations=5 $(ARGS)

test-reliability: $(VENV)/.installed ## a hundred stops of each command at random moments, and at its file operations; half an hour
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/kills.py --random 100 --operations 3 --writes 20 --together 5

fuzz: $(VENV)/.installed ## any bytes and any options through every reader, thousands of them; minutes
	$(BIN)/python -m pytest tests/reliability/test_any_input.py -n auto --hypothesis-profile fuzz

lint: $(VENV)/.installed ## style, types and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed ## HTML documentation in docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

linkcheck: $(VENV)/.installed ## whether the pages' links to the outside lead somewhere; needs the network
	$(BIN)/python -m sphinx -b linkcheck docs docs/_build/linkcheck

bench: $(VENV)/.installed ## measurements, into benchmarks/RESULTS.md; no test
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(OUT) docs/_build
