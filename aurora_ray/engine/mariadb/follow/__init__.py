"""Readers: a server on a fork of the volume in its own mount, which follows the writer's binary log."""
