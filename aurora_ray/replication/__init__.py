"""One database in several regions: each holds a copy of the primary's volume on nodes of its own, at the same LSNs."""
