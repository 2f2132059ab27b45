"""PostgreSQL as a hot standby of its cluster's volume: fed by its own replication protocol, out of the volume's log."""
