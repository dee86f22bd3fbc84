# imagesmith: `make image` and `make test` do everything on a fresh Debian or Ubuntu machine.
.PHONY: help image container test test-quick test-all lint docs bench clean

help:
	@echo "make image       install what is missing and build recipes/debian-12.yaml (ARGS=... are options of the build)"
	@echo "make container   build a container image of imagesmith itself, recipes/imagesmith.yaml"
	@echo "make test        install what is missing, lint, check types, run the tests"
	@echo "make test-quick  lint, types, and the tests that need no other programs than building does"
	@echo "make test-all    the same with the slow tests"
	@echo "make bench       measure, beside packer, virt-customize, mmdebstrap, vmdb2 and mkosi (an hour; needs root)"
	@echo "make docs        write docs/kinds.md anew from the kinds' declarations"
	@echo "make clean       remove .venv and what tools left behind"

image:
	@tools/setup image
	.venv/bin/imagesmith build recipes/debian-12.yaml $(ARGS)

container:
	@tools/setup image
	rm -rf dist/wheels
	.venv/bin/pip wheel --quiet --disable-pip-version-check --wheel-dir dist/wheels .
	.venv/bin/imagesmith build recipes/imagesmith.yaml --var wheels=$(CURDIR)/dist/wheels $(ARGS)

lint:
	.venv/bin/ruff check .
	.venv/bin/mypy

test:
	@tools/setup test
	@$(MAKE) --no-print-directory lint
	.venv/bin/python -m pytest -m "not slow" --durations=15

QUICK = architecture docs recipe recipes plan kinds digests answers_cloud store

test-quick:
	@tools/setup quick
	@$(MAKE) --no-print-directory lint
	.venv/bin/python -m pytest -m "not slow" $(QUICK:%=tests/test_%.py)

test-all:
	@tools/setup test-all
	@$(MAKE) --no-print-directory lint
	.venv/bin/python -m pytest --durations=30

bench:
	@tools/setup test-all
	.venv/bin/python -m benchmarks --write docs/performance.md $(ARGS)

docs:
	@tools/setup image
	.venv/bin/imagesmith kinds --markdown > docs/kinds.md

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
