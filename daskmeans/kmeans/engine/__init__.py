"""How centroids are found: seeding, Lloyd's updates, splitting, checkpoints."""
