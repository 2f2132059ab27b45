"""A node's face and its work in the background."""
