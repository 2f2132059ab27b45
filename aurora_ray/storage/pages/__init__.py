"""From log to pages: what is read, merged, cleared away, folded and given back."""
