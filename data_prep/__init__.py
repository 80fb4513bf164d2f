"""The one door to data: everything that knows a data set's layout lives behind `load_rows`."""

from data_prep.images.opening import ImageLimits, open_image
from data_prep.loading import load_rows
from data_prep.schema import DataError, Row, RowError

__all__ = ["DataError", "ImageLimits", "Row", "RowError", "load_rows", "open_image"]
