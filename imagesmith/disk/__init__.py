"""Disk images: qcow2, partition tables, file systems, boot loaders, attaching, assembling."""
