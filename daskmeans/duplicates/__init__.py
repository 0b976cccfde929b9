"""Deciding which of several similar rows stay."""
