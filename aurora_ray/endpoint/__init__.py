"""Stable TCP addresses that follow the roles: the cluster endpoint its writer, the reader endpoint the readers."""
