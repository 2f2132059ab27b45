"""A volume open for writing: streams of redo to the nodes, the quorum, the members of its groups."""
