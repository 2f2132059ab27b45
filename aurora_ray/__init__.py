"""An open Amazon Aurora: unmodified database engines on a six-copy, log-structured volume, on Ray."""
