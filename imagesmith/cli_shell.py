"""Shells in guests."""
