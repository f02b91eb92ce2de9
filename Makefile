# make book · make test · make serve · make lab · make bench · make clean · make pins
# Needs Python 3.11 or later, make, and a network that reaches the package registry. Everything goes into .venv.

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help book test serve lab bench clean pins

help:
	@sed -n 1p Makefile | cut -c3-

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 or later is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.txt)"
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip sync --quiet --compile-bytecode requirements.txt
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

book: $(READY)  ## execute every notebook and build the site
	$(BIN)/hdlib book

test: $(READY)  ## everything that must hold, the built book in a real browser included
	bash tests/get_chromium.sh
	$(BIN)/ruff check hdlib tests benchmarks
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 20

serve: $(READY)  ## open the built book on localhost
	@test -f _build/html/index.html || { echo "There is no built book: run make book first."; exit 1; }
	@echo "The book is at http://127.0.0.1:$(PORT)/ (Ctrl-C ends; make serve PORT=... for another port)"
	@($(BIN)/python -m webbrowser http://127.0.0.1:$(PORT)/ >/dev/null 2>&1 &) ; \
		$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lab: $(READY)  ## JupyterLab; the notebooks open as notebooks
	$(BIN)/jupyter lab notebooks --LabApp.app_settings_dir=$(CURDIR)/book/lab --MappingKernelManager.root_dir=$(CURDIR)

bench: $(READY)  ## measure; the first two need MNIST (HDLIB_DATA or data/)
	$(BIN)/python benchmarks/online_tuning.py
	$(BIN)/python benchmarks/stacked_training.py
	$(BIN)/python benchmarks/optimizer_step.py

clean:  ## everything that was built; the environment, the data, the records and your own runs stay
	rm -rf $(filter-out _build/runs _build/gpu,$(wildcard _build/* _build/.doctrees)) book/*.ipynb .pytest_cache .mypy_cache .ruff_cache .hypothesis notebooks/.ipynb_checkpoints
	find hdlib tests benchmarks book -name __pycache__ -type d -exec rm -rf {} +

pins: $(READY)  ## choose new versions of everything
	$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --universal --generate-hashes --no-header --upgrade \
		--output-file requirements.txt
