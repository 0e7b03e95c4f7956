.PHONY: check format lint types test slow

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
