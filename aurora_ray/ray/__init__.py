"""Everything that is done with Ray: actors, the local cluster, and a fleet's start and end. Nobody else imports it."""
