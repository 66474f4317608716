"""Figures and tables from stored results.  Nothing here runs an allocator."""
