"""Measurements: aurora-ray beside what users would pick instead. `python -m benchmarks --help`, `aurora bench --help`.

workloads, suites                    what is measured, on how much data, how long
runner -> schedule -> meter -> load  in which order; what it did, what it used; by which program
data, systems                        what everybody begins with; what it is measured on, each a context manager
procfs, segments, machine            what the kernel says meanwhile
results -> statistics -> derived     raw figures in JSON; everything shown is computed from them
tables, report, charts               on the terminal, in RESULTS.md
generator, distributed               load from many places at once on clusters that run already
"""
