# Every command makes .venv and installs the package there when that has not been done yet.
#   PYTHON=python3.12   another Python (3.11 or newer)
#   PINS='torch==2.11.* torchvision==0.26.*'   other versions of what is installed

PYTHON ?= python3
PINS ?=
OUT ?= runs/demo

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help demo test lab docs readme evidence clean

help: ## show this list
	@echo "deepclust_nb: deep image clustering, derived in notebooks"
	@echo
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

$(READY): settings.ini setup.py
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11 or newer, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is %d.%d: name another with PYTHON=..." % v[:2] if v < (3, 11) else 0)'
	@echo "Installing into $(VENV) (once; a few minutes and about 6 GB, most of it PyTorch)"
	@$(PYTHON) -m venv $(VENV) || { echo "Python cannot make virtual environments: install its venv module (on Debian: python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install $(if $(CI),-qq) --disable-pip-version-check -e '.[dev]' $(PINS)
	@touch $@

demo: $(READY) ## cluster 1,797 handwritten digits with MMDC and show what came out (about a minute)
	$(BIN)/deepclust train mmdc --data digits --profile laptop --out $(OUT) --overwrite
	@echo
	@echo "Open $(OUT)/gallery.html in a browser to see the clusters."

test: export OMP_NUM_THREADS = 1
test: export NUMBA_NUM_THREADS = 1
test: export MPLBACKEND = agg
test: $(READY) ## everything the CI checks; the last line says N passed, N failed
	@$(BIN)/python tools/check.py

lab: $(READY) ## open the lessons in JupyterLab
	$(BIN)/jupyter lab nbs

docs: $(READY) ## build the site into _docs (needs Quarto)
	@command -v quarto >/dev/null || { echo "Quarto is not installed: get it from https://quarto.org/docs/get-started/ and run make docs again"; exit 1; }
	@touch README.md
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_docs

readme: $(READY) ## make README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

evidence: $(READY) ## the slow runs over several seeds that write results/*.json (not part of the tests)
	$(BIN)/python tools/evidence.py

clean: ## remove the built site, logs and caches (not your runs, not .venv)
	rm -rf _proc _docs build runs/check runs/training .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
