"""The ingress topic becomes the topics of the families: time corrected, context added, not a byte of data changed."""
