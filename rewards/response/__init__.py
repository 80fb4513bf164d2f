"""From a response to the answer that it declares."""

from rewards.response.response import extract, find_boxes

__all__ = ["extract", "find_boxes"]
