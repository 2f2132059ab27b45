"""What is told: status, events, metrics, traces of failovers."""
