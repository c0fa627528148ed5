# The one recipe that has to pass before anything is merged.
check: format lint types test

format:
    ruff format --check .

lint:
    ruff check .

types:
    mypy

test:
    pytest
