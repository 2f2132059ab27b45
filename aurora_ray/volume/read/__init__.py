"""Pages and file tables as of an LSN."""
