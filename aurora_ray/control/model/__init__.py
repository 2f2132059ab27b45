"""What is declared and what is known, as data, and where it is kept."""
