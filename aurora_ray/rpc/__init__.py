"""Channels and servers."""
