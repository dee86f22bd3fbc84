"""Artifact formats: one kind per file."""
