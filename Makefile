# make up · make test · make check: nothing is needed but Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Tests wait more than they compute: two processes share them file by file, each with a Kafka and a Postgres of its own.
SHARED ?= -n 2 --dist loadfile
# A person sees pip at work, a log does not.
PIP    := $(BIN)/python -m pip install --disable-pip-version-check $(shell [ -t 2 ] || echo --quiet)

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.DEFAULT_GOAL := help
.PHONY: help install up demo test unit check schema docs story format adversity tools lock lock-kafka clean

help:            ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 18

install: $(VENV)/.installed  ## set everything up, into .venv

$(VENV)/.installed: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "drm-ingest needs Python 3.11 or later; name one with PYTHON=python3.12")'
	@echo "installing what requirements.txt pins into $(VENV), a minute or two the first time …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes -r requirements.txt
	@$(PIP) --no-deps --editable .
	@touch $@

up: install      ## run the whole path on this machine (ARGS="--port 9000")
	@exec $(BIN)/drm-ingest up $(ARGS)

demo: install    ## send real recordings for two customers and print their records
	@$(BIN)/drm-ingest demo $(ARGS)

unit: install    ## the tests that need memory only
	$(BIN)/pytest tests/unit $(ARGS)

test: install    ## all tests, on a real Kafka and a real Postgres
	@$(BIN)/python -m drm_ingest.up.fetch
	TEST_EXAMPLES=$${TEST_EXAMPLES:-150} $(BIN)/pytest -m "not slow" $(SHARED) --durations=40 --durations-min=2 $(ARGS)

tools: install   ## what the bad day needs of the system: checked, and installed where it can be
	@$(BIN)/python -m tests.adversity.tools

adversity: install tools ## the bad day, by name, the long ones too
	@$(BIN)/python -m drm_ingest.up.fetch
	WRITE_RELIABILITY=1 $(BIN)/pytest tests/adversity $(ARGS)

soak: install    ## load a running `make up` for an hour and see whether it keeps memory, descriptors or tasks
	@$(BIN)/python -m loadtests.soak $(ARGS)

check: install   ## lint, format, strict types, the import law, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.audit

schema: install  ## write migrations/schema.sql anew, after a new migration
	WRITE_SCHEMA=1 $(BIN)/pytest -q tests/migration -k checked_in

docs: install    ## write the tables that the code knows into docs/, and draw its pictures
	$(BIN)/python -m docs.tables
	$(BIN)/python -m docs.draw

story: install   ## write what the commands of docs/relations.md answer below them, and draw its pictures
	@$(BIN)/python -m drm_ingest.up.fetch
	WRITE_STORY=1 $(BIN)/pytest -q -m "not slow" tests/adversity/test_documented_story.py
	$(BIN)/python -m docs.draw

format: install  ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install    ## pin every dependency, with hashes and without an address
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --all-extras --upgrade pyproject.toml -o requirements.txt
	$(COMPILE) --upgrade --constraints requirements.txt pyproject.toml -o requirements-image.txt

lock-kafka: install ## pin Kafka's jars, after changing a version in src/drm_ingest/up/pin.py
	$(BIN)/python -m drm_ingest.up.pin

clean:           ## remove what was installed (never the data in .drm)
	rm -rf $(VENV)
