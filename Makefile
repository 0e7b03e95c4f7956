.PHONY: check format lint types test slow

check: lint test      # `make types` is not clean yet

format:
	ruff format tinyllm tests benchmarks
	ruff check --fix tinyllm tests benchmarks

lint:
	ruff format --check tinyllm tests benchmarks
	ruff check tinyllm tests benchmarks

types:
	mypy tinyllm

test:
	pytest

slow:
	pytest -m slow
