# The one recipe that has to pass before anything is merged.
check: format lint types test

format:
    ruff format --check .

lint:
    ruff check .

types:
    mypy

# Two files at a time: tests wait more than they work, and those of one file share servers.
test:
    pytest -n 2 --dist loadfile
