# `make` builds build/octavo; `make demo` shows it on a real model; `make test` runs every test. See README.md.
DEPS  := $(or $(OCTAVO_DEPS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/octavo-deps)
ENV   := $(DEPS)/env.mk
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 5

# The bootstrap runs before anything is read from its result; up to date, it takes milliseconds.
ifeq ($(filter clean help,$(MAKECMDGOALS)),)
BOOTSTRAP_STATUS := $(shell bash tools/bootstrap 1>&2; echo $$?)
ifneq ($(BOOTSTRAP_STATUS),0)
$(error tools/bootstrap failed, see the line above)
endif
include $(ENV)
endif

CMAKE_ORT = -DOCTAVO_ORT_INCLUDE=$(OCTAVO_ORT_INCLUDE) -DOCTAVO_ORT_LIBRARY=$(OCTAVO_ORT_LIBRARY)
PYTHON := $(DEPS)/venv/bin/python

.PHONY: all build everything demo test unit asan fuzz-smoke e2e bench install format format-check tidy coverage clean help
all: build

build/build.ninja: $(ENV)
	@cmake --preset release $(CMAKE_ORT) > build.log 2>&1 || { cat build.log; rm -f build.log; exit 1; }; rm -f build.log

# The command and what is installed with it; tests and benchmarks are half of the compiling and wait until they are run.
build: build/build.ninja
	@cmake --build build --target octavo_cli octavo_ops_library octavo

everything: build
	@cmake --build build

# Python for the tests, the demo's data and the peers; never needed to use Octavo.
$(DEPS)/venv.stamp: requirements-test.txt tools/venv
	@bash tools/venv $(DEPS)
	@touch $@

.PHONY: models
models: $(DEPS)/venv.stamp
	@$(PYTHON) tools/fetch_models.py --cache $(DEPS)
	@$(PYTHON) tools/make_data.py --cache $(DEPS)

# The plugin of device qnn: optional, a machine that cannot have it skips what needs it.
.PHONY: plugins
plugins: $(ENV)
	@OCTAVO_DEPS=$(DEPS) bash tools/qnn > /dev/null || echo "no QNN plugin here: what needs it is skipped"

demo: build models
	@OCTAVO_DEPS=$(DEPS) OCTAVO_ORT_LIBRARY=$(OCTAVO_ORT_LIBRARY) bash tools/demo $(PYTHON)

unit: everything models
	@OCTAVO_TEST_MODELS=$(DEPS)/models OCTAVO_ORT_LIBRARY=$(OCTAVO_ORT_LIBRARY) ctest --test-dir build --output-on-failure -j2

asan: $(ENV)
	@cmake --preset asan $(CMAKE_ORT) > /dev/null
	@cmake --build build-asan
	@OCTAVO_ORT_LIBRARY=$(OCTAVO_ORT_LIBRARY) ctest --test-dir build-asan --output-on-failure -j2

fuzz-smoke: asan
	@bash tools/fuzz_smoke build-asan $(FUZZ_SECONDS)

e2e: build models plugins
	@OCTAVO_DEPS=$(DEPS) OCTAVO_ORT_LIBRARY=$(OCTAVO_ORT_LIBRARY) $(PYTHON) -m pytest tests -q -rs

test: unit asan fuzz-smoke e2e

bench: everything models
	@OCTAVO_DEPS=$(DEPS) OCTAVO_ORT_LIBRARY=$(OCTAVO_ORT_LIBRARY) $(PYTHON) bench/run.py
	@OCTAVO_DEPS=$(DEPS) OCTAVO_ORT_LIBRARY=$(OCTAVO_ORT_LIBRARY) $(PYTHON) bench/rewrite.py
	@$(PYTHON) bench/ggml.py
	@$(PYTHON) bench/mx.py

install: build
	@cmake --install build --prefix $(PREFIX)

SOURCES = $(shell git ls-files '*.cc' '*.h')
format:
	@clang-format -i $(SOURCES)
format-check:
	@clang-format --dry-run -Werror $(SOURCES)
# One file a process: a finding names its file, fails the target and stops no other file. Tests are left out: the macros
# of GoogleTest take most of the time and are not ours to mend.
tidy: build
	@printf '%s\n' $(filter-out %_test.cc,$(filter octavo/%.cc cli/%.cc,$(SOURCES))) | \
	  xargs -n 1 -P $(shell nproc) clang-tidy -p build --quiet --warnings-as-errors='*'

# Lines that the unit tests reach: a table here, build-coverage/coverage.html in detail.
coverage: $(ENV) models
	@cmake --preset coverage $(CMAKE_ORT) > /dev/null
	@cmake --build build-coverage
	@OCTAVO_TEST_MODELS=$(DEPS)/models OCTAVO_ORT_LIBRARY=$(OCTAVO_ORT_LIBRARY) ctest --test-dir build-coverage -j2 > /dev/null
	@$(PYTHON) -m pip install -q gcovr==8.8
	@$(PYTHON) -m gcovr --root . --filter octavo/ --exclude '.*_test.*' --html-details build-coverage/coverage.html --txt - build-coverage

clean:
	rm -rf build build-asan build-coverage out

help:
	@sed -n '1s/^# //p' Makefile; echo "targets: build demo test unit asan fuzz-smoke e2e bench install format tidy coverage clean"
