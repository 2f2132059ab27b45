"""Compute: the processes that run an engine on a mount, and the storage nodes, as Ray actors around plain classes."""
