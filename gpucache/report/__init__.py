"""What lies in a root and what is wrong with it, as values; reads only."""

from gpucache.report.cache_report import CacheReport, scan
from gpucache.report.find import find_entries

__all__ = ["CacheReport", "find_entries", "scan"]
