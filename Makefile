# make demo: convert a real BERT and see what was lost and gained.
# make site: the documentation as a site, in out/site/html.
# make test: everything that must hold, for all pairs of settings; make test-all: for all combinations.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO := out/all-MiniLM-L6-v2-collab-96
RECIPE := conversions/all-MiniLM-L6-v2-collab-96.toml

.PHONY: demo default-tests lint site test test-all slow-test fuzz clean

demo: $(VENV)/.demo
	$(BIN)/hf-heads convert --recipe $(RECIPE) --output $(DEMO) --overwrite
	$(BIN)/hf-heads verify $(DEMO) --recipe $(RECIPE)
	$(BIN)/python examples/sentence_similarity.py --model $(DEMO)

# Two workers with one thread each: tiny models gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Checks of types and style run beside the tests, which leave a core idle at times.
test: $(VENV)/.test
	$(MAKE) --no-print-directory -j 2 lint default-tests

default-tests: $(VENV)/.test
	$(PYTEST) -m "not slow and not full"

# The full matrices, and what takes minutes.
test-all: lint
	$(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Warnings, as of a link that leads nowhere, fail.
site: $(VENV)/.site
	$(BIN)/python scripts/run.py website

# Damaged files by the thousand; the tests above read a few of each kind.
fuzz: $(VENV)/.test
	HF_HEADS_FUZZ=20000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz

slow-test: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	scripts/install_torch.sh $(BIN)/python

$(VENV)/.demo $(VENV)/.site $(VENV)/.test: $(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) out
