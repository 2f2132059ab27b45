"""The command line. Imports stay light: Ray and everything above a dataclass is imported inside the commands."""
