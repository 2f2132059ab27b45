"""MariaDB: found, configured, started, watched, stopped."""
