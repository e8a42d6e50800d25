"""What lies in a root and what is wrong with it, as values; reads only."""

from gpucache.report.cache_report import CacheReport, scan

__all__ = ["CacheReport", "scan"]
