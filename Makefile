# Everything here works from a fresh clone with Python >= 3.11, make and git: each target makes .venv
# in the checkout and installs from PyPI what it needs, once per change of pyproject.toml.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-compiled check format autobahn chaos fuzz bench bench-check bench-peers bench-profile audit lock clean

# Tried in this order; PYTHON=/path/to/python chooses one.
PYTHON ?= python3.13 python3.12 python3.11 python3 python

# Arguments for the command that the target runs: make demo ARGS="--port 4000".
ARGS ?=

BIN := .venv/bin
COMPILED := .cache/compiled
COMPILED_TESTS := $(addprefix tests/,core sources web e2e hostile test_app.py upstream/test_subscription.py)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

help:
	@echo "make demo      see the relay at work: an embedded Redis, a worker, live progress"
	@echo "make test      all checks: formatting, lint, types, tests (make check is the same)"
	@echo "make test-compiled  the tests of the hot path again, with it compiled (RELAY_COMPILE=1)"
	@echo "make format    put the formatting right, and what lint can mend by itself"
	@echo "make autobahn  judge the WebSocket framing with Autobahn (needs Python 2.7)"
	@echo "make chaos     break everything at random for three minutes, and see that nothing is lost"
	@echo "make fuzz      send the relay a million odd inputs, and see that it stands them"
	@echo "make bench     what the relay costs beside other servers (20 minutes; ARGS=--quick 4)"
	@echo "make bench-peers  install those other servers, as far as PyPI, npm and Go have them"
	@echo "make bench-profile  see where the relay's CPU time goes: kernel, interpreter, functions (a minute)"
	@echo "make bench-check  see that the hot path takes no more steps than it did"
	@echo "make audit     ask PyPI for known vulnerabilities of what CI installs"
	@echo "make lock      take the newest version of everything that CI installs, and write it down"
	@echo "make clean     remove .venv, caches and build results"
	@echo
	@echo "PYTHON=/path/to/python chooses the interpreter (>= 3.11) that .venv is made with;"
	@echo "ARGS=\"--port 4000\" is handed to whatever the target runs: relay demo, pytest, the chaos run, …"

demo: .venv/.installed-demo
	@exec $(BIN)/relay demo $(ARGS)

test: .venv/.installed-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy relay tests
	$(BIN)/python -m pytest $(ARGS)

check: test

# What the compiler may have understood in another way is tested where it runs as extensions; pages and
# foreign tools see nothing of that. Safe path: or the checkout, in which tests and daemons run, would come
# before what was compiled.
test-compiled: $(COMPILED)/.built
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(COMPILED):$(CURDIR) RELAY_TEST_COMPILED=1 \
	  $(BIN)/python -m pytest --import-mode=importlib -m "not tool and not uncompiled" $(or $(ARGS),$(COMPILED_TESTS))

$(COMPILED)/.built: setup.py $(wildcard relay/*.py relay/*/*.py) | .venv/.installed-test
	@echo "Compiling the hot path (a minute or two)"
	@rm -rf $(COMPILED) build
	@RELAY_COMPILE=1 $(PIP) install --no-deps --target $(COMPILED) .
	@rm -rf build
	@touch $@

format: .venv/.installed-test
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

autobahn: .venv/.installed-test
	@tests/autobahn/install.sh
	$(BIN)/python -m tests.autobahn.run

chaos: .venv/.installed-test
	$(BIN)/python -m tests.chaos $(ARGS)

bench: .venv/.installed-test
	@$(MAKE) --no-print-directory $(COMPILED)/.built || echo "Going on without the compiled relay"
	$(BIN)/python -m tests.bench $(ARGS)

bench-check: .venv/.installed-test
	$(BIN)/python -m tests.bench.guard $(ARGS)

bench-peers: .venv/.installed-test
	@tests/bench/peers/install.sh $(BIN)/python

bench-profile: .venv/.installed-test
	$(BIN)/python -m tests.bench.profile

fuzz: .venv/.installed-test
	$(BIN)/python -m tests.fuzz $(ARGS)

# Not a part of make test: a vulnerability that became known overnight must not redden a checkout. Strict, as
# otherwise what could not be asked about counts as sound.
audit: .cache/audit/bin/pip-audit
	@$< --requirement tests/constraints.txt --no-deps --disable-pip --strict --progress-spinner off || { \
	  echo "make audit failed. A vulnerability is named above: raise the versions with make lock." >&2; \
	  echo "Something could not be audited: it needs to reach pypi.org itself, not a mirror." >&2; \
	  exit 1; }

.cache/audit/bin/pip-audit: | $(BIN)/python
	@echo "Installing pip-audit into .cache/audit"
	@rm -rf .cache/audit && mkdir -p .cache && $(BIN)/python -m venv .cache/audit
	@.cache/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit || { \
	  rm -rf .cache/audit; \
	  echo "make audit needs PyPI, to install pip-audit and to ask for vulnerabilities: no network?" >&2; \
	  exit 1; }

# From scratch, so that nothing that happens to lie about is written down. What the file says of itself stays.
lock: | $(BIN)/python
	@rm -rf .cache/lock && mkdir -p .cache && $(BIN)/python -m venv .cache/lock
	@.cache/lock/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@{ grep '^#' tests/constraints.txt; .cache/lock/bin/python -m pip freeze --exclude relay; } \
	  >.cache/constraints.txt
	@mv .cache/constraints.txt tests/constraints.txt && rm -rf .cache/lock

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
