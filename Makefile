# make demo   fetch a model and a book, build, compare mechanisms
# make test   build and run every test
# make        build      (also: check, format, tidy, clean)
PYTHON := .venv/bin/python
BUILD := build/release

.PHONY: build demo test check tidy format clean

build: setup-build
	@./tools/build.sh release

.PHONY: setup-build setup-test
setup-build:
	@./tools/setup.sh build
setup-test:
	@./tools/setup.sh test

demo: build
	@$(PYTHON) tools/fetch.py smollm2
	@$(PYTHON) tools/fetch.py book || $(PYTHON) tools/fetch.py articles
	@./tools/demo.sh

test: setup-test check
	@$(PYTHON) tools/fetch.py --all || echo "test: not everything could be fetched; the tests that need it will skip"
	@./tools/build.sh release tests
	@ctest --preset release -j "$$(nproc)"

# Format, layers, sizes.
check:
	@$(PYTHON) tools/check_format.py
	@$(PYTHON) tools/check_layers.py
	@$(PYTHON) tools/check_size.py

# clang-tidy over the layers that are free of torch (the others take minutes a file for torch's headers).
tidy: build
	@command -v clang-tidy >/dev/null || { echo "tidy: please install clang-tidy"; exit 2; }
	@for file in foveate/base/*.cpp foveate/io/*.cpp foveate/report/*.cpp; do \
	  clang-tidy -p $(BUILD) --quiet --extra-arg=-Wno-unknown-warning-option $$file 2>/dev/null || exit 1; done

format:
	@$(PYTHON) tools/check_format.py --fix

# Random attention problems at every level against the definition; SECONDS and SEED may be given.
SECONDS ?= 1800
SEED ?= 1000000
fuzz-attend: test-build
	@./$(BUILD)/tests/attend_fuzz $(SECONDS) $(SEED)
# Damaged files for each reader under the sanitizers, SECONDS each.
fuzz-readers: setup-test
	@./tools/build.sh asan tests
	@for reader in gguf image safetensors torch_file tokenizer; do ./build/asan/tests/$${reader}_fuzz $(SECONDS) $(SEED) || exit 1; done
.PHONY: fuzz-attend fuzz-readers test-build
test-build: setup-test
	@./tools/build.sh release tests

clean:
	rm -rf build
