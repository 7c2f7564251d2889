# make train   install and train on real flights       make test   run the tests
# make check   format, lint, types, layers, audit      make bench  speed against other tools
# make scan    look for unsafe settings in terraform/   make audit  look for packages with known flaws
# make fuzz    some minutes of damaged input            make soak   break runs for half an hour
#
# Everything lives in .venv, made with $(PYTHON) (3.11 or newer): `make PYTHON=python3.12 train`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
TRAIN_ARGS ?=
TEST_ARGS ?=
# As many tests at a time as there are cores on a small machine: those that break things watch clocks too.
TEST_PROCESSES ?= 2
# What the dashboard looked like in the last run of its tests; an absolute path, as tests change folders.
export CIRRUS_SCREENSHOTS ?= $(CURDIR)/build/screenshots
BENCH_DATA := out/bench-data
BENCH_TOOL := ../shared/tools/make_criteo_like.py
BENCH_ARGS ?=
BENCH_ROWS ?= 1000000
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 600

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install train test check scan audit fuzz soak format bench clean

help:
	@sed -n '1,6s/^# \{0,1\}//p' Makefile

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: Cirrus needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing cirrus and its dependencies (some 300 MB, about a minute)"
	@$(PIP) --editable '.[dashboard,examples]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools for tests and checks"
	@$(PIP) --editable '.[dashboard,examples,dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PIP) --editable '.[dashboard,examples,bench]'
	@touch $@

# Compiled here once, so that the first run does not stand still for it.
$(VENV)/.kernels: $(VENV)/.installed $(shell grep -rlE "numba.njit|@compiled" cirrus)
	@$(BIN)/python -m cirrus.paramserver.kernels
	@$(BIN)/python -c "from cirrus.client_backend import metric_columns as m; m.columns_of_lines(b'', '')"
	@echo "compiling the loader's kernels"
	@printf '1 1:1\n0 2:1\n' > $(VENV)/two-rows.svm
	@printf 'label,colour\n1,red\n0,blue\n' > $(VENV)/two-rows.csv
	@$(BIN)/python -c "import cirrus; cirrus.load_svmlight('$(VENV)/two-rows.svm', 'memory://two/svm')"
	@$(BIN)/python -c "import cirrus; \
	    cirrus.load_csv('$(VENV)/two-rows.csv', 'memory://two/csv', label='label', categorical=['colour'])"
	@printf '1 |a x |b y\n0 |a z\n' > $(VENV)/two-rows.vw
	@printf '1 0:1\n1 1:2\n' > $(VENV)/two-rows.ldac
	@printf '2\n2\n2\n1 1 1\n2 2 2\n' > $(VENV)/two-rows.docword
	@$(BIN)/python -c "import cirrus; cirrus.load_vw('$(VENV)/two-rows.vw', 'memory://two/vw', ['ab']); \
	    cirrus.load_bag_of_words('$(VENV)/two-rows.ldac', 'memory://two/ldac'); \
	    cirrus.load_bag_of_words('$(VENV)/two-rows.docword', 'memory://two/docword', 'docword')"
	@touch $@

install: $(VENV)/.installed $(VENV)/.kernels

train: install
	@$(BIN)/python examples/flights.py $(TRAIN_ARGS)

test: $(VENV)/.installed-dev $(VENV)/.kernels
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadgroup --no-loadscope-reorder $(TEST_ARGS)

# The seed is printed: `make soak CIRRUS_TEST_SEED=7` repeats the choice of victims and moments.
soak: $(VENV)/.installed-dev $(VENV)/.kernels
	CIRRUS_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -s tests/test_soak.py
	CIRRUS_FAULTS=all $(BIN)/python -m pytest tests/test_fault_table.py tests/test_ray_nodes.py

# What the machine can say by itself comes first; the audit asks the network.
check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive cirrus dashboard/cirrus_dashboard lambda_package
	@$(MAKE) --no-print-directory audit

# The scanner pins much of what it needs, and gets an environment of its own.
$(VENV)/scan/.installed: $(VENV)/.created
	@$(PYTHON) -m venv $(VENV)/scan
	@$(VENV)/scan/bin/python -m pip --disable-pip-version-check install --quiet checkov==3.3.30
	@touch $@

scan: $(VENV)/scan/.installed
	$(VENV)/scan/bin/checkov --directory terraform --framework terraform --compact --quiet --skip-download

# Without the auditor, as on a machine with no network, what needs none is checked, and the rest said to be skipped.
$(VENV)/audit/.installed: $(VENV)/.created
	@$(PYTHON) -m venv $(VENV)/audit
	@if $(VENV)/audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit==2.10.1; then touch $@; fi

audit: $(VENV)/.installed-dev $(VENV)/audit/.installed
	@$(BIN)/python .ci/audit.py $(VENV)/audit/bin/pip-audit

fuzz: $(VENV)/.installed-dev $(VENV)/.kernels
	PYTHONPATH=tests:.:dashboard $(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS)
	@if $(BIN)/python -m pip --disable-pip-version-check install --quiet --only-binary :all: 'atheris>=2.3,<4'; then \
	    PYTHONPATH=tests:.:dashboard $(BIN)/python tests/fuzz.py --engine atheris --seconds $$(($(FUZZ_SECONDS) / 2)); \
	else echo "coverage: SKIPPED, atheris cannot be installed for this Python"; fi

format: $(VENV)/.installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: install $(VENV)/.installed-bench $(BENCH_DATA)/X.npy
	@for script in benchmarks/[a-z]*.py; do \
	    echo "== $$script"; $(BIN)/python $$script $(BENCH_ARGS) || exit 1; done

# A million rows shaped like advertising data, where the generator lies beside the project.
$(BENCH_DATA)/X.npy: | $(VENV)/.installed
	@if [ -e $(BENCH_TOOL) ]; then \
	    echo "making $(BENCH_ROWS) rows in $(BENCH_DATA)"; \
	    $(BIN)/python $(BENCH_TOOL) $(BENCH_ROWS) $(BENCH_DATA) --vw; \
	else echo "no $(BENCH_TOOL): the benchmark of training is skipped"; fi

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
