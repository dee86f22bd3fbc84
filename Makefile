# imagesmith: `make image` and `make test` do everything on a fresh Debian or Ubuntu machine.
.PHONY: help image test test-all lint docs bench clean

help:
	@echo "make image     install what is missing and build recipes/debian-12.yaml (ARGS=... are options of the build)"
	@echo "make test      install what is missing, lint, check types, run the tests"
	@echo "make test-all  the same with the slow tests"
	@echo "make bench     measure, beside packer, virt-customize, mmdebstrap, vmdb2 and mkosi (an hour; needs root)"
	@echo "make docs      write docs/kinds.md anew from the kinds' declarations"
	@echo "make clean     remove .venv and what tools left behind"

image:
	@tools/setup image
	.venv/bin/imagesmith build recipes/debian-12.yaml $(ARGS)

lint:
	.venv/bin/ruff check .
	.venv/bin/mypy

test:
	@tools/setup test
	@$(MAKE) --no-print-directory lint
	.venv/bin/python -m pytest -m "not slow" --durations=15

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
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
