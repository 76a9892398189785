# Everything a fresh machine needs is Python >= 3.11, pip, make and (for the cluster tests) Go.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.octavo-installed
WORKERS ?= 2

# Test processes share the machine's cores; more threads than that in each only makes them wait.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

.PHONY: help venv demo test lint model helm system control-plane soak bench-seed clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

venv: $(STAMP)  ## Make .venv with Octavo (editable) and every pinned dependency

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing Octavo and its dependencies into .venv (about 2 minutes, 5 GB) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,operator,test,dev]'
	@touch $@

model: $(STAMP)  ## Fetch the demo model (98 MB) into .cache/models
	@$(BIN)/python examples/fetch_demo_model.py

demo: $(STAMP)  ## Serve examples/smollm2.yaml without a cluster and ask it a question
	@$(BIN)/python examples/demo.py

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

helm: $(STAMP)  ## Fetch Helm into .cache/tools, if there is none on the path
	@$(BIN)/python tests/charts/fetch_helm.py || test -z "$${OCTAVO_REQUIRE_CLUSTER:-}"

system:  # what network namespaces and kube-proxy need; root on Debian only, elsewhere the tests say what is missing
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		missing=(); \
		command -v ip >/dev/null || missing+=(iproute2); \
		command -v nft >/dev/null || missing+=(nftables); \
		if [ "$${#missing[@]}" -gt 0 ]; then \
			echo "Installing $${missing[*]} ..."; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
		fi; \
	fi

control-plane: $(STAMP)  ## Build Kubernetes' own binaries into a cache (12 minutes on 2 cores, once)
	@$(BIN)/python tests/cluster/build.py && $(BIN)/python -m tests.cluster.crd_files || { test -z "$${OCTAVO_REQUIRE_CLUSTER:-}" && echo "The cluster tests will be skipped."; }

# In CI the cluster tests must run; elsewhere they skip, and say what is missing, if they cannot.
export OCTAVO_REQUIRE_CLUSTER := $(if $(CI),1,$(OCTAVO_REQUIRE_CLUSTER))
test: $(STAMP) lint model helm system control-plane  ## Set up, lint, type-check and run every test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS)

soak: $(STAMP)  ## The scheduler by properties (an hour), the operator killed and at full size
	OCTAVO_REQUIRE_CLUSTER=1 OCTAVO_FAULT_SERVICES=50 OCTAVO_FAULT_KILLS=20 OCTAVO_SCALE_SERVICES=1000 \
		OCTAVO_OUTAGE_SERVICES=20 OCTAVO_OUTAGE_ROUNDS=5 OCTAVO_OUTAGE_SOAK=1 $(TEST_ENV) $(BIN)/python \
		-m pytest --timeout=0 -n 0 -s tests/cluster/test_faults.py tests/cluster/test_outages.py tests/cluster/test_scale.py
	$(TEST_ENV) OCTAVO_SOAK_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/python -m pytest --timeout=0 tests/server/engine/test_scheduler_properties.py

bench-seed: $(STAMP) model  ## The article's experiment: 50 requests at once, Flask against Octavo
	$(BIN)/python benchmarks/seed.py

clean:  ## Remove what the targets above made (not the control plane's cache)
	rm -rf .venv .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
