"""Storing events, exactly once in effect, and what became of each."""
