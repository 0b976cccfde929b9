"""Which rows of similar ones stay, and why."""
