"""What a path holds, and what steps will take."""
