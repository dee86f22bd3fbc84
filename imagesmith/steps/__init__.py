"""Provisioning actions: one kind per file."""
