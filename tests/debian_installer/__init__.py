"""The real debian-installer as a fixture: an ISO of it, and a mirror that it can install from.

The suite is another one than the host's. Everything comes from the mirror that the host's own apt uses, verified by
apt, and is fetched once for each folder.
"""
