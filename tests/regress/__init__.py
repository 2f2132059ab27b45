"""The engines' own regression suites on clusters of ours: `python -m tests.regress [--engine mysql] --help`.

PostgreSQL's runs on a writer with a reader beside it (`postgres.py`), MariaDB's on a writer and on a stock server
(`mysql.py`). The suites themselves are no part of this project.
"""
