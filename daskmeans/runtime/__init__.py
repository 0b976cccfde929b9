"""Where tasks run, and the resources they have."""
