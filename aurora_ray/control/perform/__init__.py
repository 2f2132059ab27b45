"""How actions are carried out."""
