"""Faults made on purpose, for tests and for people who try the fleet."""
