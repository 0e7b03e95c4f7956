.PHONY: check format lint types test slow evidence lowest

check: lint types test

format:
	ruff format tinyllm tests benchmarks
	ruff check --fix tinyllm tests benchmarks

lint:
	ruff format --check tinyllm tests benchmarks
	ruff check tinyllm tests benchmarks

types:
	mypy tinyllm

test:
	pytest -n 2 --dist loadfile --no-loadscope-reorder

slow:
	pytest -m slow

# Everything that was run to find out whether this works; writes docs/evidence.md and the figures of the READMEs. About four hours on two cores.
evidence:
	python -m tests.evidence

# The tests with the lowest versions that pyproject.toml allows. Needs uv; on Linux torch 2.8 brings 5 GB of CUDA packages.
# `hub` excludes the lowest tokenizers, so there are two sets: `make lowest` and `make lowest EXTRAS=parity,parquet,dev`.
EXTRAS ?= hub,parquet,dev
lowest:
	uv venv --clear --python 3.11 build/lowest
	uv pip install --python build/lowest/bin/python --resolution lowest-direct -e '.[$(EXTRAS)]'
	build/lowest/bin/python -m pytest
