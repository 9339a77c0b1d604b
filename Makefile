# Each target is one command that a person would type. PYTHON chooses the interpreter, and each has a virtual
# environment of its own:  make test PYTHON=python3.12
# TESTS narrows what runs tests:  make asan TESTS="tests/sched -k timer"

PYTHON ?= python3
# What needs nothing but the extra `test`; `make ecosystem` runs the rest.
TESTS = $(filter-out tests/conformance tests/ecosystem tests/soak tests/stress,$(patsubst %/,%,$(wildcard tests/*/)))
PYTEST_OPTIONS ?=
JOBS ?= 2

# Seconds after which a check is ended and has failed.
ASAN_SECONDS ?= 1800
VALGRIND_SECONDS ?= 600
DEBUG_SECONDS ?= 1200
GC_SECONDS ?= 1200
TSAN_SECONDS ?= 1800
COVERAGE_SECONDS ?= 1800

TAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d%s" % (*sys.version_info[:2], sys.abiflags))')
VENV := .venv-$(TAG)
PY = $(VENV)/bin/python
SETUP = PYTHON="$(PYTHON)" tools/setup_env.sh $(VENV)
# Plugins that come with libraries of the extra 'ecosystem' would make loops and tests of their own.
PYTEST := -m pytest -p no:asyncio -p no:anyio $(PYTEST_OPTIONS)
C_FILES = $(shell find src -name '*.[ch]')

.PHONY: help build debug test switches test-debug gc asan stress interpreters tsan traces model soak valgrind \
	checked-debug checked-asan demo conformance conformance-debug ecosystem bench bench-smoke picture docs lint format planted \
	sdist wheel check-wheel clean refs leaks coverage checked-coverage fuzz checked-fuzz analyze reproducible parallel

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

build: ## build the extension in place, -O3
	@$(SETUP) test

debug: export FASTLOOP_DEBUG = 1
debug: ## build it in place with -O0, assertions and full debug information
	@$(SETUP) test

test: build ## run the tests
	$(PY) $(PYTEST) $(TESTS)

# Each fast path switched off (fastloop/switches.py), and the tests of what then serves in its place.
SWITCHES = tasks:coro/test_behaviour.py,coro/test_traces.py,sched contexts:coro/test_behaviour.py,sched pool:pool spin:pool,sched/test_timers.py sockets:io connect:io servers:io/test_servers.py streams:io tls:io
switches: build ## run the tests with one fast path after the other switched off
	set -e; for switch in $(SWITCHES); do \
		FASTLOOP_DISABLE=$${switch%:*} $(PY) $(PYTEST) -q --loop fastloop $$(echo ",$${switch#*:}" | sed 's#,# tests/#g'); \
	done

# A build for a check stays out of the source tree, next to a copy of the package: what was built in place stays as it
# is. The tests run in its folder, and it stands in PYTHONPATH, so that every child process imports it too.
CHECKED = build/$(VARIANT)-$(TAG)
checked-debug: VARIANT = debug
checked-asan: VARIANT = asan
checked-coverage: VARIANT = coverage
checked-debug: export FASTLOOP_DEBUG = 1
checked-asan: export FASTLOOP_SANITIZE = address,undefined
checked-coverage: export FASTLOOP_COVERAGE = 1
checked-fuzz: VARIANT = fuzz
checked-fuzz: export FASTLOOP_SANITIZE = address,undefined
checked-fuzz: CHECKED_CFLAGS = -fsanitize-coverage=trace-pc
checked-debug checked-asan checked-coverage checked-fuzz:
	@FASTLOOP_DEBUG= FASTLOOP_SANITIZE= FASTLOOP_COVERAGE= $(SETUP) test
	@rm -rf $(CHECKED)/lib
	CFLAGS="$(CFLAGS) $(CHECKED_CFLAGS)" $(PY) setup.py -q build --build-base $(CHECKED) --build-lib $(CHECKED)/lib

# What C writes as it aborts must not be captured.
# $(call checked,SECONDS,ENVIRONMENT,COMMAND THAT RUNS PYTHON): the tests on the build for the check VARIANT
checked = cd $(CHECKED)/lib && PYTHONPATH=$(CURDIR)/$(CHECKED)/lib:$(CURDIR)/tools/checks $(2) \
	timeout --verbose --kill-after=30 $(1) $(3) $(CURDIR)/$(PY) $(PYTEST) --capture=sys -p patience --patience $(PATIENCE) \
	-c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(patsubst tests%,$(CURDIR)/tests%,$(filter-out tests/docs,$(TESTS)))
PATIENCE = 3

test-debug: VARIANT = debug
test-debug: checked-debug ## run the tests with C assertions, in the development modes of Python and asyncio
	$(call checked,$(DEBUG_SECONDS),PYTHONASYNCIODEBUG=1 PYTHONDEVMODE=1)

GC_TESTS = tests/sched tests/coro tests/io tests/pool tests/memory
# 3.11 collects right where an object is made. Later versions wait until the interpreter looks, which it does as soon as
# our C code calls out to a Python function. Left out are the tests that mostly start other processes. All of them:
#     make gc TESTS=tests GC_SECONDS=36000
gc: VARIANT = debug
gc: TESTS = $(GC_TESTS)
gc: checked-debug ## run the tests on fastloop, collecting garbage at each allocation (3.11) or call of a Python function
	$(call checked,$(GC_SECONDS),EAGER_GC=1,) --loop fastloop

# Reports go to files: pytest would swallow them, and a child process that ends with one may be meant to fail.
asan: VARIANT = asan
asan: checked-asan ## run the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@rm -f $(CHECKED)/report.*
	$(call checked,$(ASAN_SECONDS),$(ASAN_ENVIRONMENT)); \
	status=$$?; ! cat ../report.* 2>/dev/null && exit $$status
ASAN_ENVIRONMENT = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path=$(CURDIR)/$(CHECKED)/report \
	UBSAN_OPTIONS=print_stacktrace=1:log_path=$(CURDIR)/$(CHECKED)/report

# Where a process ends, not whether: what the interpreter itself leaves must not change the status of a child.
leaks: VARIANT = asan
leaks: checked-asan ## run the tests on fastloop under LeakSanitizer: no process loses memory that our C code took
	@rm -f $(CHECKED)/report.*
	$(call checked,$(ASAN_SECONDS),$(LEAKS_ENVIRONMENT)) --loop fastloop; \
	status=$$?; $(CURDIR)/$(PY) $(CURDIR)/tools/checks/leaks.py $$(ls ../report.* 2>/dev/null) && exit $$status
LEAKS_ENVIRONMENT = $(subst detect_leaks=0,detect_leaks=1:exitcode=0,$(ASAN_ENVIRONMENT)) \
	LSAN_OPTIONS=suppressions=$(CURDIR)/tools/lsan.supp:print_suppressions=0

# A process that is killed does not write what it counted. docs/reliability.md tells what is left
# out of the count, and why.
coverage: VARIANT = coverage
coverage: checked-coverage ## run the tests on fastloop, and show which C code they leave out
	@$(SETUP) coverage
	@find $(CHECKED) -name '*.gcda' -delete
	$(call checked,$(COVERAGE_SECONDS),EXIT_COUNTED=1,) --loop fastloop
	$(VENV)/bin/gcovr --config tools/gcovr.cfg --root . --filter src/ $(COVERAGE_OPTIONS) --object-directory $(CHECKED) \
		--html-details $(CHECKED)/report.html --txt $(CHECKED)/report.txt $(CHECKED); \
	status=$$?; cat $(CHECKED)/report.txt; exit $$status
COVERAGE_OPTIONS = --fail-under-line 95 --fail-under-branch 90

# Under the sanitizers, and with what fuzz.py needs to see which programs reach something new. Longer: FUZZ_SECONDS=3600
FUZZ_SECONDS ?= 60
fuzz: VARIANT = fuzz
fuzz: checked-fuzz ## call everything of the C module with odd arguments for FUZZ_SECONDS: no crash, no hang
	@rm -f $(CHECKED)/report.*
	gcc -shared -fPIC -O2 -o $(CHECKED)/guide.so tests/fuzz/guide.c
	PYTHONPATH=$(CHECKED)/lib $(subst $$(gcc -print-file-name=libubsan.so),$$(gcc -print-file-name=libubsan.so) $(CURDIR)/$(CHECKED)/guide.so,$(ASAN_ENVIRONMENT)) \
		$(PY) tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS) --keep $(CHECKED)/failed $(FUZZ_OPTIONS); \
	status=$$?; ! cat $(CHECKED)/report.* 2>/dev/null && exit $$status

# What threads do to each other, ten times as much of it as the suite has: a million hops to the pool and back, wake-ups
# by the hundred thousand. FASTLOOP_STRESS=100 makes it ten million.
STRESS_TESTS = tests/sched/test_wakeups.py tests/sched/test_foreign_threads.py tests/pool/test_stress.py
stress: build ## run the stress of threads: every job and wake-up arrives, once
	FASTLOOP_STRESS=$${FASTLOOP_STRESS:-10} $(PY) $(PYTEST) --loop fastloop $(STRESS_TESTS)

# Those of 3.13 that have a GIL of their own keep seven megabytes each, with either loop: it needs so many gigabytes.
interpreters: build ## make and end a thousand subinterpreters, and compare what is left with the standard loop's
	FASTLOOP_INTERPRETERS=$${FASTLOOP_INTERPRETERS:-1000} $(PY) $(PYTEST) tests/load/test_subinterpreters.py -k no_more -rP

# Only a free-threaded Python that was itself configured with --with-thread-sanitizer sees what the interpreter orders.
# The build stays out of the source tree, and the virtual environment is one of its own.
tsan: VARIANT = tsan
tsan: VENV = .venv-$(TAG)-tsan
tsan: PATIENCE = 20
tsan: TESTS = $(STRESS_TESTS) tests/sched/test_loops_in_threads.py
tsan: ## run the stress of threads under ThreadSanitizer (PYTHON built with --disable-gil --with-thread-sanitizer)
	@$(PYTHON) -c 'import sys, sysconfig; sys.exit("--with-thread-sanitizer" not in sysconfig.get_config_var("CONFIG_ARGS"))' \
		|| { echo "make tsan needs a PYTHON that was configured with --with-thread-sanitizer"; exit 1; }
	@PYTHON="$(PYTHON)" tools/setup_env.sh $(VENV) tsan
	@rm -rf $(CHECKED)/lib $(CHECKED)/report.*
	FASTLOOP_SANITIZE=thread $(PY) setup.py -q build --build-base $(CHECKED) --build-lib $(CHECKED)/lib
	$(call checked,$(TSAN_SECONDS),$(TSAN_ENVIRONMENT)) --loop fastloop; \
	status=$$?; ! cat ../report.* 2>/dev/null && exit $$status
# Children would compile the standard library, each anew: an interpreter for this is installed without its bytecode.
TSAN_ENVIRONMENT = PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/$(CHECKED)/cache TSAN_OPTIONS=suppressions=$(CURDIR)/tools/tsan.supp:history_size=4:exitcode=0:log_path=$(CURDIR)/$(CHECKED)/report

# What fits ten minutes: each way through the C code, few of the tests that only wait or start processes. All of them:
#     make valgrind TESTS=tests VALGRIND_SECONDS=36000
# Plugins that the tests do not need take a minute to import there.
# Only addresses are checked: CPython itself looks at memory that valgrind takes for uninitialised.
VALGRIND_TESTS = tests/sched/test_call_soon.py tests/sched/test_timers.py
valgrind: VARIANT = debug
valgrind: PATIENCE = 20
valgrind: TESTS = $(VALGRIND_TESTS)
valgrind: checked-debug ## run some tests on fastloop under valgrind memcheck
	@$(SETUP) valgrind
	$(call checked,$(VALGRIND_SECONDS),PYTHONMALLOC=malloc PYTEST_DISABLE_PLUGIN_AUTOLOAD=1,valgrind -q --error-exitcode=9 --leak-check=no --undef-value-errors=no \
	--num-callers=25 --suppressions=$(CURDIR)/tools/valgrind.supp) -p timeout --loop fastloop

# CHECKS="asan valgrind" for some of them; PYTHON=python3.11 for `gc`, one that was built for it for `tsan`.
planted: build ## plant a defect for each sanitizer and kin in a copy of the source: it must be reported
	@command -v valgrind >/dev/null || $(SETUP) valgrind
	$(PY) tools/checks/planted.py $(CHECKS)

# Only what a target needs, without running it.
setup-%:
	@$(SETUP) $*

refs: build ## call everything a hundred times over on a debug Python (PYTHON=python3.13-dbg): no reference is left
	PYTHONPATH=. $(PY) tests/memory/references.py

traces: build ## run a million tasks of random programs on both loops, and compare their histories
	PYTHONPATH=. $(PY) tests/coro/trace_many.py

# `make test` runs some of each. Programs beyond a thousand are other ones each time.
MODEL_EXAMPLES ?= 3000
model: build ## run thousands of random programs on both loops, and compare what they did
	FASTLOOP_EXAMPLES=$(MODEL_EXAMPLES) $(PY) $(PYTEST) tests/model

# An hour, some ten million messages on an idle machine: make soak SOAK_SECONDS=3600
SOAK_SECONDS ?= 180
soak: build ## run mixed work beside hostile clients for SOAK_SECONDS: nothing is lost, nothing grows
	PYTHONPATH=tests $(PY) tests/soak/soak.py --seconds $(SOAK_SECONDS)

demo: ## run the example programs on asyncio, fastloop and uvloop, and compare
	@$(SETUP) demo
	$(PY) tools/demo.py

conformance: ## run CPython's own tests of asyncio on fastloop, and compare the public surface with asyncio's
	@$(SETUP) conformance
	@mkdir -p build
	$(PY) tests/conformance/cpython_suite.py --loop fastloop -j $(JOBS) --rerun --json build/conformance-$(TAG).json $(CONFORMANCE_OPTIONS)
	$(PY) tests/conformance/surface.py

# What the suite's children get on their path switches debug mode on: the suite itself takes the variable away.
conformance-debug: ## run CPython's own tests of asyncio on fastloop in asyncio's debug mode
	@$(SETUP) conformance
	@mkdir -p build
	$(PY) tests/conformance/cpython_suite.py --loop fastloop -j $(JOBS) --rerun --json build/conformance-debug-$(TAG).json \
		--path $(CURDIR)/tests/conformance/debug_mode $(CONFORMANCE_OPTIONS)

# An environment of its own: some of these libraries change what others do, and the signal handlers of the process.
ecosystem setup-ecosystem: VENV = .venv-$(TAG)-ecosystem
ecosystem: ## install the libraries and servers that tests/ecosystem, stress and docs use, and run these
	@$(SETUP) ecosystem
	FASTLOOP_REQUIRE_ALL=1 $(PY) $(PYTEST) tests/ecosystem tests/stress tests/docs

bench: ## compare the loops that are installed by the benchmarks
	@$(SETUP) bench
	$(PY) -m benchmarks $(BENCH_OPTIONS)

bench-smoke: ## run each default benchmark once and short: whether it works, not how fast
	@$(SETUP) bench
	$(PY) -m benchmarks --quick --rounds 1 --loops asyncio,fastloop $(BENCH_OPTIONS)

parallel: build ## two loops in two threads against one (PYTHON without a GIL, two processors that are free)
	$(PY) -m benchmarks.parallel $(BENCH_OPTIONS)

picture: ## draw docs/results.svg from the tables of benchmarks/README.md, and tell in README.md what is lost
	$(PYTHON) tools/draw_results.py

analyze: ## look for defects in the C code with gcc -fanalyzer and clang-tidy
	@$(SETUP) analyze
	tools/checks/analyze.sh $(VENV) $(filter %.c,$(C_FILES))

docs: ## build the site of docs/ into build/docs; a warning is an error
	@$(SETUP) docs
	$(PY) -m sphinx -q -W --keep-going -d build/docs-cache docs build/docs
	@echo build/docs/index.html

lint: ## check the layout of the code and the rules of tests/rules
	@$(SETUP) lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	$(VENV)/bin/shellcheck tools/*.sh .ci/run
	$(VENV)/bin/stubtest fastloop --ignore-missing-stub --mypy-config-file pyproject.toml --allowlist tools/checks/stubtest.allowed --ignore-unused-allowlist
	$(VENV)/bin/mypy --strict fastloop examples tests/typing
	$(PY) $(PYTEST) -q tests/rules

format: ## lay the code out
	@$(SETUP) lint
	$(VENV)/bin/ruff check --fix-only --select I .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES)

sdist: ## make dist/fastloop-VERSION.tar.gz
	@$(SETUP) test
	$(PY) -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")'

reproducible: sdist ## build the wheel twice from the source archive, in two folders: the same bits
	tools/check_reproducible.sh $(PY) dist/fastloop-*.tar.gz

# The libuv that pkg-config finds goes into the wheel; PKG_CONFIG_PATH and LD_LIBRARY_PATH choose another one, such as
# that of tools/build_libuv.sh. The names of functions stay, for perf. Linked apart, for what is in build/ has not been
# stripped.
WHEELS := build/wheel-$(TAG)
wheel: ## make a wheel in dist/ that carries libuv (Linux)
	@$(SETUP) wheel
	@rm -rf $(WHEELS)
	LDFLAGS="$(LDFLAGS) -Wl,--strip-debug" $(PY) setup.py -q build --build-lib $(WHEELS)/lib \
		bdist_wheel --bdist-dir $(WHEELS)/bdist -d $(WHEELS)/plain
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m auditwheel repair -w $(WHEELS)/whole $(WHEELS)/plain/*.whl
	$(PY) tools/add_sbom.py $(WHEELS)/whole/*.whl
	@mkdir -p dist
	cp $(WHEELS)/whole/*.whl dist/

check-wheel: wheel ## run it in an empty environment, in a system without libuv and compiler (root or user namespaces)
	tools/check_wheel.sh $(PY) $(WHEELS)/whole/*.whl

clean: ## remove what was built, the virtual environments too
	rm -rf build dist .venv-* *.egg-info .pytest_cache .ruff_cache .hypothesis
	find fastloop -name '*.so' -delete
	find fastloop tests tools -name __pycache__ -prune -exec rm -rf {} +
