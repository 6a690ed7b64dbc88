# make run    makes the environment and runs the main job: text in, few-step student and report out
# make test   makes the environment and passes the tests
# make test-lowest   the same on the lowest versions that pyproject.toml allows (constraints-lowest.txt), in .venv-lowest
# make other-triton  puts the Triton that an earlier PyTorch brings where the tests of compiled kernels look for it
# make lint   makes the environment and checks style, format and types
# make docs   builds the documentation in site/; a broken link or reference fails
# make docs-serve  shows it while it is written
# make notebook    runs docs/quickstart.ipynb
# make dist   builds sdist and wheel, installs the wheel into a fresh environment and runs the quickstart from it
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
# The site needs the extra `docs`, beside those that are asked for.
DOCS_STAMP := $(if $(findstring docs,$(EXTRAS)),$(STAMP),$(VENV)/.installed-docs)

OTHER_TRITON := .triton-3.6.0

.PHONY: run test test-lowest other-triton lint snippets docs docs-serve notebook dist environment clean

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
	$(VENV)/bin/python tests/docstring_examples.py

# Silence the theme's notice about its successor.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1

docs: $(DOCS_STAMP)
	$(VENV)/bin/python -m mkdocs build --strict --quiet

docs-serve: $(DOCS_STAMP)
	$(VENV)/bin/python -m mkdocs serve

notebook: $(DOCS_STAMP)
	$(VENV)/bin/python tests/notebook.py

# The wheel is tried in an environment of its own, from a folder where the sources are not.
dist: $(STAMP)
	rm -rf dist .venv-wheel
	$(VENV)/bin/python -m build
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --disable-pip-version-check -c constraints.txt dist/*.whl
	cd '$(shell mktemp -d)' && '$(CURDIR)/.venv-wheel/bin/python' '$(CURDIR)/tests/readme_snippets.py' '$(CURDIR)/docs/quickstart.md'
	rm -rf .venv-wheel

environment: $(STAMP)

$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch '$@'

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-wheel $(OTHER_TRITON) build dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache
