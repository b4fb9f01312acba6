# Fieldmark's commands. Each does its own set-up, into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Compiled tests are kept, also where a surrounding tool has switched that off: three workers read
# what one has compiled.
RUN := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
# Three for two cores, because many tests wait for processes of their own. A file's tests stay together; tests/longest.py says which files begin.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo docs audit sbom lock wheel axe test test-slow test-deployment test-image soak lint bench bench-gpu house map clean

# make soak MINUTES=30 SEED=0 OUT=FOLDER: among hostile sites, memory and disk stay flat.
MINUTES ?= 30
SEED ?= 0
OUT ?=

demo: $(STAMP)
	$(RUN) $(BIN)/fieldmark simulate simulations/recipes/demo.toml

# The documentation site, into build/site; a dead link ends it.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN) $(BIN)/python -m mkdocs build --strict

test: $(STAMP)
	$(RUN) $(BIN)/python -m pytest $(WORKERS) -m "not slow" --durations=25

test-slow: $(STAMP)
	$(RUN) $(BIN)/python -m pytest $(WORKERS) -m slow

test-deployment: $(STAMP)
	$(RUN) $(BIN)/python -m pytest -m deployment

# Needs root, buildah and mmdebstrap, as distributions package them, and a torch for the CPU.
test-image: $(STAMP)
	$(RUN) FIELDMARK_TEST_IMAGE=1 $(BIN)/python -m pytest -rs tests/test_image.py

soak: $(STAMP)
	$(RUN) FIELDMARK_SOAK_MINUTES=$(MINUTES) FIELDMARK_SOAK_SEED=$(SEED) \
	  FIELDMARK_SOAK_OUT=$(OUT) $(BIN)/python -m pytest -s tests/deployment/test_soak.py

# mypy and import-linter look at folders, not at what is installed: a copy laid out as it is there.
CHECKED := build/checked

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(CHECKED)
	mkdir -p $(CHECKED)
	cp -Rp fgvc_core fieldmark $(CHECKED)
	cp -Rp client server simulations $(CHECKED)/fieldmark
	cd $(CHECKED) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache
	cd $(CHECKED) && ../../$(BIN)/lint-imports --config ../../pyproject.toml --cache-dir ../../.import_linter_cache

bench: $(STAMP)
	$(RUN) $(BIN)/fieldmark bench

# Without network and without Flower; on a machine without a GPU the CPU half runs, and says so.
bench-gpu: $(STAMP)
	$(RUN) $(BIN)/fieldmark bench gpu --json

house: $(STAMP)
	$(RUN) $(BIN)/python tests/house.py

map: $(STAMP)
	$(BIN)/python tests/house.py --map

# Known faults of the pinned versions, and what is inside; the tools have an environment of their own.
SUPPLY := build/supply

audit: $(SUPPLY)/.ready
	$(SUPPLY)/bin/python deploy/audit.py constraints.txt

sbom: $(STAMP) $(SUPPLY)/.ready
	$(SUPPLY)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
	  --output-file build/sbom.json $(BIN)/python

# After a change of constraints.txt: the SHA-256 of everything that an installation brings.
lock: $(STAMP)
	$(BIN)/python deploy/lock.py deploy/locked.txt

# Pages that people forward, by the rules of axe-core, which npm brings; needs a Chromium.
AXE := build/axe/axe.min.js

axe: $(STAMP) $(AXE)
	$(RUN) $(BIN)/python -m pytest -rs tests/test_reports_for_everyone.py

$(AXE):
	mkdir -p build/axe
	cd build/axe && npm pack --silent axe-core@4.14.1
	tar -xzf build/axe/axe-core-4.14.1.tgz -C build/axe --strip-components=1 package/axe.min.js

# The same commit gives the same bytes.
wheel: $(STAMP)
	rm -rf build/lib build/bdist.*
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --wheel --no-isolation

$(SUPPLY)/.ready: constraints.txt
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/pip install --quiet --constraint constraints.txt cyclonedx-bom pip-audit
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[weights,simulation,dev]'
	touch $(STAMP)
