.PHONY: setup quickstart test unit lint format template

setup:
	bash scripts/setup_environment.sh test

quickstart:
	bash scripts/quickstart.sh

test:
	bash scripts/run_tests.sh

unit:
	bash scripts/run_tests.sh -m "not component"

lint: setup
	.venv/bin/ruff check src tests
	.venv/bin/ruff format --check src tests
	.venv/bin/mypy

format: setup
	.venv/bin/ruff check --fix src tests
	.venv/bin/ruff format src tests

template: setup
	.venv/bin/python src/write_template.py
