"""Spans, metrics and their export."""
