"""Data: which images there are, decoded once a node, split once, and read in one global order."""
