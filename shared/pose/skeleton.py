"""Joint layouts: they are in `wardpose.shared.skeleton` now; this is the address that scripts of version 0.1.0 know."""

from wardpose.shared.skeleton import COCO17, LSP14, MPII16, SKELETONS, Skeleton, convert, get_skeleton

__all__ = ["COCO17", "LSP14", "MPII16", "SKELETONS", "Skeleton", "convert", "get_skeleton"]
