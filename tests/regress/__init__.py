"""PostgreSQL's own regression suite on a writer with readers beside it: `python -m tests.regress --help`."""
