"""Answer files: what unattended installers read. One kind a file; modules with a leading _ are shared."""
