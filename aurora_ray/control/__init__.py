"""The control plane: what is declared, what is observed, and the loop that drives the one towards the other."""
