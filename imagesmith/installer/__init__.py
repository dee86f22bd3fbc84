"""Unattended installations: the medium, how the answer file gets there, and watching what happens."""
