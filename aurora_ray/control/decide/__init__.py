"""Pure decisions: what is declared and observed in, actions out."""
