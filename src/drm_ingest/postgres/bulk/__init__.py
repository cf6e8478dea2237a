"""Many at once, in and out, under the rules of single ones."""
