"""Adapters that know one database engine each: where it is, how it starts, stops and answers."""
