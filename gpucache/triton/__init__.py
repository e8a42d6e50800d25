"""Triton's cache manager: each kernel compiled once per node."""

from gpucache.triton.manager import CacheManager, DeviceCacheManager

__all__ = ["CacheManager", "DeviceCacheManager"]
