"""One copy of one protection group: its state in memory, its rules, its log by page."""
