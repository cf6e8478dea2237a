"""Dead letters, for people: found, shown, mended and sent on their way again."""
