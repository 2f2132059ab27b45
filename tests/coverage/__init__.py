"""How much of the package runs when the tests run, in whatever process: workers of pytest, storage nodes, Ray's actors.

    python -m tests.coverage run DIR -- .venv/bin/pytest …     # or `make coverage`
    python -m tests.coverage report DIR

Each block of statements that runs as a whole (a function, a branch, a loop's body, a handler) sets one byte, in a file
that all processes map. So a process that is killed has told what it ran, nothing is merged, and nobody has to end in
an orderly way, which half of our processes never do. coverage.py doubles the processors' time on Python 3.11, and tells
nothing of those that are killed; this costs a store for each block.

What is counted: a statement ran if the block began in which it stands. So a statement behind one that always raises
counts too, and both halves of `a or b`.
"""
