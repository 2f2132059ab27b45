"""What a node gets from its peers: missing log, whole segments, single items that were damaged."""
