"""The preloaded C library, and its consumer's side for Python."""
