# `make demo` trains CMI on a simulated log; `make test` runs the tests. Both first create .venv with everything needed.
PYTHON ?= python3
# Threads that spin at every barrier stall each other on a machine that does anything else.
export OMP_WAIT_POLICY ?= PASSIVE
BIN := .venv/bin
DEMO := runs/demo
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(wildcard tools/*.py) $(shell find csrc -type f)

.PHONY: demo test clean

demo: .venv/installed
	@mkdir -p $(DEMO)
	$(BIN)/cmi-fast simulate $(DEMO)/log.parquet --users 2000 --items 5000 --days 14 --seed 0
	$(BIN)/cmi-fast train $(DEMO)/log.parquet --out $(DEMO)/cmi --overwrite \
	  --item-categories $(DEMO)/log.truth.parquet --set lr=0.002 --set steps_per_epoch=150 --set epochs=6
	$(BIN)/cmi-fast recommend $(DEMO)/cmi --k 50 --out $(DEMO)/recommendations.parquet

test: .venv/installed
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# torch comes first: the build of the compiled operators looks for it.
.venv/installed: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv build runs cmi_fast/*.so *.egg-info
