"""What concurrent clients saw, and whether any serial order explains it: pure checkers of recorded histories.

They know nothing of the system under test. `tests.chaos` records the histories; `python -m tests.histories check FILE`
judges one.
"""
