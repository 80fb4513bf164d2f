"""Readers of data set layouts, one file each; `registry` knows them by name and by the look of a path."""
