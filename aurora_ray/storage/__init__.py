"""The storage node: segments of the redo log, pages at any LSN, repair among peers."""
