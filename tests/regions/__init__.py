"""Region files and their loader."""
