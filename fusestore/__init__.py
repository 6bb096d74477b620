"""fusestore: container images for people without root.

``import fusestore`` is cheap: names below are loaded when first used, and FUSE is needed only to mount.
"""

__version__ = "0.1.0"
