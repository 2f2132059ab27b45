"""Measurements: aurora-ray beside what users would pick instead. `python -m benchmarks --help`.

suites -> schedule -> workloads -> load        what is measured, in which order, by what
systems                                        what it is measured on, each a context manager
procfs, machine                                what the kernel says meanwhile
results -> statistics -> tables, report        raw figures in JSON; everything shown is computed from them
"""
