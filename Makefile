# `make demo` and `make test` are all a newcomer needs; both build their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint docs bench bench-deploy bench-peers parity studies clean
.DEFAULT_GOAL := demo

# torch comes first and by itself, so that no other package chooses its build
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/demo: $(VENV)/torch pyproject.toml runtime/pyproject.toml
	$(PIP) -e runtime -e ".[all]"
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml runtime/pyproject.toml
	$(PIP) -e runtime -e ".[dev]"
	touch $@ $(VENV)/demo

demo: $(VENV)/demo  ## train float, STE, StoMPP and StoMPP+STE on embedded data, pack the last; leaves runs/demo/report.html
	$(BIN)/frostbit compare recipes/demo.yaml --out runs/demo --jobs 2 --overwrite
	$(BIN)/frostbit export runs/demo/stompp+ste-seed0 --samples 64
	$(BIN)/frostbit predict runs/demo/stompp+ste-seed0/net.safetensors --data digits

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## everything that must hold, in a few minutes
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: $(VENV)/dev  ## the minutes-long checks
	$(BIN)/pytest -m slow

docs: $(VENV)/dev
	$(PIP) -e runtime -e ".[docs]"
	$(BIN)/mkdocs build --strict

bench: $(VENV)/demo  ## step time and saved bytes beside the float network; a whole run's time; what recording costs
	cd benchmarks && ../$(BIN)/python step.py && ../$(BIN)/python whole_run.py && ../$(BIN)/python pipeline.py && ../$(BIN)/python recorder.py

$(VENV)-lce/lce: benchmarks/lce.txt
	$(PYTHON) -m venv $(VENV)-lce
	$(VENV)-lce/bin/pip install -q --disable-pip-version-check -r benchmarks/lce.txt
	touch $@

bench-deploy: $(VENV)/dev $(VENV)-lce/lce  ## kernels and packed networks beside torch, onnxruntime and larq-compute-engine
	cd benchmarks && ../$(BIN)/python kernels.py && ../$(BIN)/python deploy.py --lce ../$(VENV)-lce/bin/python

parity: $(VENV)/dev  ## train every family a little, pack it, hold it against torch and numpy; DATA="--data cifar10 --path FOLDER --texts FOLDER"
	cd benchmarks && ../$(BIN)/python parity.py $(DATA)

$(VENV)-peers/peers: constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(VENV)-peers/bin/pip install -q --disable-pip-version-check -r benchmarks/peers.txt -e .
	touch $@

bench-peers: $(VENV)-peers/peers  ## brevitas, bitorch and torchao beside this, in an environment of their own
	cd benchmarks && ../$(VENV)-peers/bin/python peers.py && ../$(VENV)-peers/bin/python peers_parq.py

clean:
	rm -rf $(VENV) $(VENV)-lce $(VENV)-peers build dist site runtime/build
