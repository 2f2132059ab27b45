"""Redo records and batches: pure data, no I/O."""
