"""How outputs are written: whole or not at all."""
