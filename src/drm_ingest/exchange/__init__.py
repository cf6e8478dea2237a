"""Other systems' data: in from files, out to files."""
