"""Near-duplicates: found inside clusters, ranked, decided, explained and applied to the original files."""
