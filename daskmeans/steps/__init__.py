"""One file a command: settings, checks, manifest, counts."""
