"""Where a disk begins: one kind per file."""
