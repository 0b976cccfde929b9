"""The similarity join: all pairs of rows above a score."""
