"""Measures imagesmith against its peers, in the same run: ``python -m benchmarks [NAME...]``."""
