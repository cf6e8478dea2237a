"""The steps of which records.py puts a record together, each a piece of SQL that one can read by itself."""
