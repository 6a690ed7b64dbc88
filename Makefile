# make run    makes the environment and runs the main job: text in, few-step student and report out
# make test   makes the environment and passes the tests
# make test-lowest   the same on the lowest versions that pyproject.toml allows (constraints-lowest.txt), in .venv-lowest
# make other-triton  puts the Triton that an earlier PyTorch brings where the tests of compiled kernels look for it
# make lint   makes the environment and checks style, format and types
#
# PYTHON  the interpreter that .venv is made with; 3.10 or later
# EXTRAS  extras of pyproject.toml to install, for example EXTRAS=dev,gpu
# WORKERS processes that share out the tests; the cores by default
# ARGS    passed on to what run or test starts

PYTHON ?= python3
EXTRAS ?= dev
WORKERS ?= logical
ARGS ?=
VENV := .venv
# One stamp for each set of extras, so that another set is added to the environment and not mistaken for it.
STAMP := $(VENV)/.installed-$(EXTRAS)

OTHER_TRITON := .triton-3.6.0

.PHONY: run test test-lowest other-triton lint snippets environment clean

run: $(STAMP)
	$(VENV)/bin/python -m discrete_distill.recipes.owt $(ARGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-lowest:
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --disable-pip-version-check -c constraints-lowest.txt -e '.[dev,gpu,hub]'
	$(VENV)-lowest/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

other-triton: $(OTHER_TRITON)

# Beside the environment, whose own Triton is another; only the compiler is used.
$(OTHER_TRITON): | $(STAMP)
	rm -rf '$@.partial'
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --target '$@.partial' triton==3.6.0
	mv '$@.partial' '$@'

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

snippets: $(STAMP)
	$(VENV)/bin/python tests/readme_snippets.py

environment: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch '$@'

clean:
	rm -rf $(VENV) $(VENV)-lowest $(OTHER_TRITON) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
