# Everything there is to run; CI runs `make test`. Needs nothing but make and Python 3.11 to 3.14: uv makes the set-up
# faster, node adds the tests with JavaScript clients. Written for GNU make 3.81 (macOS) and later, and a POSIX shell.
# Whatever the year: what is installed is in the locks, whole, with hashes, and for these Pythons as wheels, so nothing is
# resolved and nothing compiled, and any pip will do.

VENV := .venv
BIN := $(VENV)/bin
CLIENTS := tests/clients
USERS := .venv-users
LOCAL_LOCK := shared/cli/local_model.lock
# Each of these has its own venv, .venv-NAME, made from $(CLIENTS)/NAME.lock.
CLIENT_VENVS := deploy generators openai-1.40 openai-1.66 proxies python-clients vendors
LOCKS := requirements.lock tests/requirements-dev.lock $(CLIENT_VENVS:%=$(CLIENTS)/%.lock) $(LOCAL_LOCK)
# Whatever starts here starts often, and compiling takes longer than all the rest of a start.
unexport PYTHONDONTWRITEBYTECODE

ARGS ?=
LOCAL ?=
MINUTES ?= 30

# LOCAL=1 brings a real model along, 200 MB more in .venv.
WITH_LOCAL := $(filter 1,$(LOCAL))
RUNTIME := $(BIN)/.runtime $(if $(WITH_LOCAL),$(BIN)/.local)

UV := $(shell command -v uv 2>/dev/null)
# The pip that sets up, without uv: a version, or `newest`; by default the one that comes with the Python. Taken from the
# command line alone, since many have a PIP in their environment.
ifeq ($(origin PIP),command line)
  override UV :=
  PIP_WANTED := pip$(if $(filter-out newest,$(PIP)),==$(PIP))
endif
# A name on PATH proves little (pyenv's shims, Debian without python3-venv), so each candidate has to do the work;
# uv makes a venv with any Python. For a newer one, some of what is locked would have to be compiled.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import $(if $(UV),,ensurepip, venv,) sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	>/dev/null 2>&1 && echo $$p && break; done)
found = [ -n "$(PYTHON)" ] || { echo "Streamspool needs Python 3.11 to 3.14 with its venv module (Debian, Ubuntu:" \
	"apt install python3-venv). Looked for python3 and python3.11 to 3.14; another one: make PYTHON=…" >&2; exit 1; }
NODE := $(shell command -v node >/dev/null 2>&1 && command -v npm 2>/dev/null)

ifneq ($(UV),)
  # $(call venv,DIR), $(call pip,DIR), $(call locked,DIR) LOCK: one venv, one quiet installer, either way
  venv = [ -x $(1)/bin/python ] || { $(found); $(UV) venv --quiet --allow-existing --python $(PYTHON) $(1); }
  pip = $(UV) pip install --quiet --python $(1)/bin/python
else
  venv = $(1)/bin/python -m pip --version >/dev/null 2>&1 || \
	{ $(found); $(PYTHON) -m venv $(1)$(if $(PIP_WANTED), && $(pip) --upgrade $(PIP_WANTED)); }
  pip = $(1)/bin/python -m pip install --quiet --disable-pip-version-check
endif
locked = $(pip) --no-deps --only-binary :all: --require-hashes -r
# $(call runtime,DIR): a venv with what users install
runtime = { $(call venv,$(1)); } && $(call locked,$(1)) requirements.lock && \
	$(call pip,$(1)) --no-deps --no-build-isolation --editable .

.PHONY: help install demo up set-up test soak bench bench-peers bench-against lint lock clients codex clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(BIN)/.runtime ## set up .venv with what runs Streamspool
	@:

demo: $(RUNTIME) ## install, then watch an answer survive a killed server; options: ARGS="…"; a real model: LOCAL=1
	@echo "Without make: python3 -m venv .venv && .venv/bin/pip install -r requirements.lock &&" \
		".venv/bin/pip install --no-deps --no-build-isolation -e . && .venv/bin/streamspool demo"
	@exec $(BIN)/streamspool demo $(if $(WITH_LOCAL),--local) $(ARGS)

up: $(RUNTIME) ## install, then run Valkey, API and worker on this machine; options: ARGS="…"; a real model: LOCAL=1
	@exec $(BIN)/streamspool up $(if $(WITH_LOCAL),--local) $(ARGS)

# What breaks things mostly waits, so three run at once; it is not measured for coverage, which costs a third more and is
# lost with whoever is killed. The soak judges the machine, too: it has it for itself.
# A hand-picked part (ARGS) says nothing about coverage, so only the whole suite is measured.
PYTEST := $(BIN)/pytest --dist worksteal
BREAKING := tests/chaos tests/live
SOAK := tests/chaos/test_soak.py
test: set-up lint ## lint, then all tests; a part: ARGS="tests/shared -k sse"; with the model: LOCAL=1
ifneq ($(ARGS),)
	@$(PYTEST) -n 2 $(ARGS)
else
	@$(PYTEST) -n 2 $(BREAKING:%=--ignore %) --cov --cov-report=term-missing:skip-covered
	@$(BIN)/coverage report --include 'shared/*' --fail-under 95 --format total
	@$(PYTEST) -n 3 $(BREAKING) --ignore $(SOAK)
	@$(BIN)/pytest $(SOAK)
endif

set-up: $(BIN)/.dev $(RUNTIME) clients ## install all that `make test` needs; with another pip than Python's: PIP=23.0.1, PIP=newest

soak: $(BIN)/.dev ## random faults for MINUTES=30, then one verdict; options through ARGS="…"
	@$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) $(ARGS)

bench: $(BIN)/.dev $(USERS)/.stamp ## measure Streamspool alone, a minute or two; options: ARGS="--only G5,G8 --json out.json --quick"
	@BENCH_PYTHON=$(CURDIR)/$(USERS)/bin/python $(BIN)/python -m tests.bench $(ARGS)

bench-peers: $(BIN)/.dev $(USERS)/.stamp ## install the peers, measure all side by side, write docs/PERFORMANCE.md; ARGS as with bench
	@BENCH_PYTHON=$(CURDIR)/$(USERS)/bin/python $(BIN)/python -m tests.bench.compare $(ARGS)

REV ?=
bench-against: $(if $(REV),$(BIN)/.dev $(USERS)/.stamp) ## measure this build beside an earlier one, by turns: REV=HEAD~1; options: ARGS="--reps 3 --only flood"
	@[ -n "$(REV)" ] || { echo "Which revision? make bench-against REV=HEAD~1" >&2; exit 1; }
	@BENCH_PYTHON=$(CURDIR)/$(USERS)/bin/python $(BIN)/python -m tests.bench.against $(REV) $(ARGS)

lint: $(BIN)/.dev $(CLIENT_VENVS:%=.venv-%/.stamp) ## ruff, mypy, the layers, the sizes, the locks
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m tests.support.sizes check
	@! grep -nE '://|^[[:space:]]*-[^-]|--(index|extra|find|trusted)' $(LOCKS)
	@$(BIN)/python -m tests.support.locks check requirements.lock=$(VENV) tests/requirements-dev.lock=$(VENV) \
		$(foreach name,$(CLIENT_VENVS),$(CLIENTS)/$(name).lock=.venv-$(name))

lock: $(BIN)/.dev ## make the locks anew (needs uv); newer versions: make lock ARGS=--upgrade
	@[ -n "$(UV)" ] || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	@$(COMPILE) pyproject.toml --extra cost --extra history --extra traces --group build -o requirements.lock
	@$(COMPILE) pyproject.toml --group build --group dev -c requirements.lock -o tests/requirements-dev.lock
	@$(COMPILE) --no-deps --group local -o $(LOCAL_LOCK)
	@$(foreach name,$(CLIENT_VENVS),$(COMPILE) $(CLIENTS)/$(name).in -o $(CLIENTS)/$(name).lock &&) :
	@$(BIN)/python -m tests.support.locks spell-out $(LOCKS)
COMPILE = $(UV) pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-annotate --no-header $(ARGS)

clients: $(CLIENT_VENVS:%=.venv-%/.stamp) ## set up the client libraries the tests talk through
clients: $(if $(NODE),$(CLIENTS)/node_modules/.stamp)
	@$(if $(NODE),:,echo "No node and npm on PATH: the tests with JavaScript clients will be skipped.")

codex: ## set up OpenAI's Codex, 420 MB, for tests/e2e/test_codex.py
	@cd $(CLIENTS)/codex && npm ci --silent --no-audit --no-fund

clean: ## remove everything that was made here, .venv included
	rm -rf $(VENV) $(USERS) $(CLIENT_VENVS:%=.venv-%) $(CLIENTS)/node_modules $(CLIENTS)/codex/node_modules .coverage* .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache .bench dist
	find api worker shared tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last: what was interrupted is done again, what is done stays quiet.
$(BIN)/.runtime: requirements.lock pyproject.toml
	@echo "Setting up $(VENV) …"
	@$(call runtime,$(VENV))
	@touch $@

$(BIN)/.dev: tests/requirements-dev.lock $(BIN)/.runtime
	@echo "Adding the test tools …"
	@$(call locked,$(VENV)) tests/requirements-dev.lock
	@touch $@

$(BIN)/.local: $(LOCAL_LOCK) $(BIN)/.runtime
	@echo "Adding the local model …"
	@$(call locked,$(VENV)) $(LOCAL_LOCK)
	@touch $@

# What users install and nothing else, for what is measured: among the test tools is a library that redis-py loads if it
# is there, 9 MB for each process.
$(USERS)/.stamp: requirements.lock pyproject.toml
	@echo "Setting up $(USERS) …"
	@$(call runtime,$(USERS))
	@touch $@

.venv-%/.stamp: $(CLIENTS)/%.lock
	@echo "Setting up .venv-$* …"
	@$(call venv,.venv-$*)
	@$(call locked,.venv-$*) $<
	@touch $@

$(CLIENTS)/node_modules/.stamp: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json
	@echo "Setting up $(CLIENTS)/node_modules …"
	@cd $(CLIENTS) && npm ci --silent --no-audit --no-fund
	@touch $@
