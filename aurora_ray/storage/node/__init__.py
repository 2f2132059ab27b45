"""What a storage node holds: its volumes and their segments, and recovery's calls to all of a volume's."""
