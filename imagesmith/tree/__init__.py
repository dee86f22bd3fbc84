"""Root file systems as directories: namespaces, overlay, running inside."""
