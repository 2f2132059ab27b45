"""The client side of a volume: quorum, recovery, streams, reads, and the mount."""
