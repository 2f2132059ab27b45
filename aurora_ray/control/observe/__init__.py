"""What runs: found, watched and asked."""
