"""A running QEMU: argument list, QMP, console, screen, firmware."""
