# `make demo` runs the main job, `make test` the tests. Each creates .venv when it is missing and reuses it otherwise.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
IMPORT_ROOT := build/import

.PHONY: demo test test-all lint format docs stubs install clean

demo: $(STAMP)
	$(BIN)/wardpose simulate demo

# One worker a core, one thread a worker: many small networks gain nothing from more. Whole deployments run one after the
# other afterwards: Flower gives its database and its local SuperLink seconds, whatever else the machine is doing.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test: $(STAMP)
	$(PYTEST) -n auto --dist loadfile -m "not slow or guard" --ignore tests/e2e
	$(PYTEST) -m "not slow or guard" tests/e2e || $(PYTEST) -m "not slow or guard" --last-failed tests/e2e

test-all: $(STAMP)
	$(PYTEST) -n auto --dist loadfile --ignore tests/e2e
	$(PYTEST) tests/e2e

lint: $(STAMP) $(IMPORT_ROOT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(IMPORT_ROOT) $(BIN)/mypy -p wardpose

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The strict build is a test, too (tests/test_docs.py).
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/docs/index.html"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# mypy does not read setuptools' package-dir: show it the same import root as links.
$(IMPORT_ROOT):
	mkdir -p $@/wardpose
	for package in client server shared simulation; do ln -sfn ../../../$$package $@/wardpose/$$package; done

clean:
	rm -rf build $(VENV)

# What is generated from the Budget service's definition; tests/shared/test_budget_wire.py holds that it is current.
stubs: $(STAMP) $(IMPORT_ROOT)
	cd $(IMPORT_ROOT) && ../../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
		wardpose/shared/budget_wire/budget.proto
