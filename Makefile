# Each target is one command that a person would type. PYTHON chooses the interpreter, and each has a virtual
# environment of its own:  make test PYTHON=python3.12
# TESTS narrows test, test-debug, asan and valgrind:  make test TESTS="tests/sched -k timer"

PYTHON ?= python3
TESTS ?= tests
PYTEST_OPTIONS ?=
JOBS ?= 2

TAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d%s" % (*sys.version_info[:2], sys.abiflags))')
VENV := .venv-$(TAG)
PY := $(VENV)/bin/python
SETUP := PYTHON="$(PYTHON)" tools/setup_env.sh $(VENV)
PYTEST := -m pytest $(PYTEST_OPTIONS)
C_FILES = $(shell find src -name '*.[ch]')

.PHONY: help build debug test test-debug demo conformance asan valgrind lint format sdist wheel clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

build: ## build the extension in place, -O3
	@$(SETUP) test

debug: export FASTLOOP_DEBUG = 1
debug: ## build it in place with -O0, assertions and full debug information
	@$(SETUP) test

test: build ## run the tests
	$(PY) $(PYTEST) $(TESTS)

test-debug: debug ## run the tests on the debug build, in the development modes of Python and asyncio
	PYTHONASYNCIODEBUG=1 $(PY) -X dev $(PYTEST) $(TESTS)

demo: ## run the example programs on asyncio, fastloop and uvloop, and compare
	@$(SETUP) demo
	$(PY) tools/demo.py

conformance: ## run CPython's own tests of asyncio on fastloop
	@$(SETUP) conformance
	@mkdir -p build
	$(PY) tests/conformance/cpython_suite.py --loop fastloop -j $(JOBS) --rerun --json build/conformance-$(TAG).json

# A sanitized build stays out of the source tree: it cannot be imported without the sanitizers' libraries. The
# tests run in its folder, so that every child process imports it too.
SANITIZED := build/sanitized-$(TAG)
asan: build ## run the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf $(SANITIZED)/lib
	FASTLOOP_SANITIZE=address,undefined $(PY) setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	cd $(SANITIZED)/lib && \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	$(CURDIR)/$(PY) $(PYTEST) -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(addprefix $(CURDIR)/,$(TESTS))

# Only addresses are checked: CPython itself looks at memory that valgrind takes for uninitialised.
valgrind: debug ## run the tests under valgrind (hours for all of them: narrow with TESTS)
	PYTHONMALLOC=malloc valgrind -q --error-exitcode=9 --leak-check=no --undef-value-errors=no --suppressions=tools/valgrind.supp \
	$(PY) $(PYTEST) $(TESTS)

lint: ## check the layout of the code and the rules of tests/rules
	@$(SETUP) lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	$(VENV)/bin/shellcheck tools/*.sh .ci/run
	$(PY) $(PYTEST) -q tests/rules

format: ## lay the code out
	@$(SETUP) lint
	$(VENV)/bin/ruff check --fix-only --select I .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES)

sdist: ## make dist/fastloop-VERSION.tar.gz
	@$(SETUP) test
	$(PY) -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")'

wheel: ## make a wheel for this machine in dist/
	@$(SETUP) test
	$(PY) -m pip wheel -q --no-deps --no-build-isolation -w dist .

clean: ## remove what was built, the virtual environments too
	rm -rf build dist .venv-* *.egg-info .pytest_cache .ruff_cache .hypothesis
	find fastloop -name '*.so' -delete
	find fastloop tests tools -name __pycache__ -prune -exec rm -rf {} +
