"""PostgreSQL: all that knows it. `adapter.py` is its way in."""
