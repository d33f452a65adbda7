# Everything here works from a fresh clone with Python >= 3.11, make and git: each target makes .venv
# in the checkout and installs from PyPI what it needs, once per change of pyproject.toml.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format autobahn chaos bench bench-check bench-peers clean

# Tried in this order; PYTHON=/path/to/python chooses one.
PYTHON ?= python3.13 python3.12 python3.11 python3 python

# Arguments for the command that the target runs: make demo ARGS="--port 4000".
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

help:
	@echo "make demo      see the relay at work: an embedded Redis, a worker, live progress"
	@echo "make test      all checks: formatting, lint, types, tests (make check is the same)"
	@echo "make format    put the formatting right, and what lint can mend by itself"
	@echo "make autobahn  judge the WebSocket framing with Autobahn (needs Python 2.7)"
	@echo "make chaos     break everything at random for three minutes, and see that nothing is lost"
	@echo "make bench     what the relay costs beside other servers (20 minutes; ARGS=--quick 4)"
	@echo "make bench-peers  install those other servers, as far as PyPI, npm and Go have them"
	@echo "make bench-check  see that the hot path takes no more steps than it did"
	@echo "make clean     remove .venv, caches and build results"
	@echo
	@echo "PYTHON=/path/to/python chooses the interpreter (>= 3.11) that .venv is made with;"
	@echo "ARGS=\"--port 4000\" is handed to relay demo, to pytest, to the chaos run or to the bench."

demo: .venv/.installed-demo
	@exec $(BIN)/relay demo $(ARGS)

test: .venv/.installed-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy relay tests
	$(BIN)/python -m pytest $(ARGS)

check: test

format: .venv/.installed-test
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

autobahn: .venv/.installed-test
	@tests/autobahn/install.sh
	$(BIN)/python -m tests.autobahn.run

chaos: .venv/.installed-test
	$(BIN)/python -m tests.chaos $(ARGS)

bench: .venv/.installed-test
	$(BIN)/python -m tests.bench $(ARGS)

bench-check: .venv/.installed-test
	$(BIN)/python -m tests.bench.guard $(ARGS)

bench-peers: .venv/.installed-test
	@tests/bench/peers/install.sh $(BIN)/python

# A name on the PATH proves nothing: version managers leave shims that only print an error, and
# Debian's python3 has no ensurepip until python3-venv is there. So each candidate is asked.
$(BIN)/python:
	@for python in $(PYTHON); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	      2>/dev/null; then \
	    echo "Making .venv with $$("$$python" --version)"; \
	    exec "$$python" -m venv .venv; \
	  fi; \
	done; \
	echo "No Python >= 3.11 that can make a virtual environment among: $(PYTHON)" >&2; \
	echo "Install one (on Debian and Ubuntu python3-venv too), or name it:" >&2; \
	echo "  make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1

.venv/.installed-demo: pyproject.toml | $(BIN)/python
	@echo "Installing the relay and its demo into .venv (half a minute the first time)"
	@$(PIP) --editable '.[demo]'
	@touch $@

.venv/.installed-test: pyproject.toml tests/constraints.txt | $(BIN)/python
	@echo "Installing the relay and its checks into .venv (a minute the first time)"
	@$(PIP) --constraint tests/constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist reports
	rm -rf *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
