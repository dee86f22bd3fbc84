"""Root file systems as directories: namespaces, overlay, running inside."""

from imagesmith.tree.manage import available, contents, inside, measure, remove
from imagesmith.tree.mounts import DEEPEST, BlockMount, DirectoryMount, Mount, OverlayMount
from imagesmith.tree.session import TreeRoot, open_root

__all__ = ["DEEPEST", "BlockMount", "DirectoryMount", "Mount", "OverlayMount", "TreeRoot", "available", "contents",
           "inside", "measure", "open_root", "remove"]  # fmt: skip
