# make demo   fetch a model and a book, build, compare mechanisms
# make test   build and run every test
# make        build
PYTHON := .venv/bin/python
BUILD := build/release

.PHONY: build demo test check format clean

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
	@./tools/build.sh release
	@ctest --preset release

# Format, layers, sizes.
check:
	@$(PYTHON) tools/check_format.py
	@$(PYTHON) tools/check_layers.py
	@$(PYTHON) tools/check_size.py

format:
	@$(PYTHON) tools/check_format.py --fix

clean:
	rm -rf build
