"""What lies on a node's disk: directories, databases, keys and values, graves."""
