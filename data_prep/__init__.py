"""The one door to data: everything that knows a data set's layout lives behind `load_rows`.

What is heavy or rarely used is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from data_prep.images.opening import ImageLimits, open_image, read_image, resolve_image_path
from data_prep.images.stored import ImageSource, VideoSource
from data_prep.loading import load_rows, scan_rows
from data_prep.schema import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, DataError, Row, RowError, Turn

if TYPE_CHECKING:
    from data_prep.audit.collect import Collected, collect
    from data_prep.audit.defects import overlap
    from data_prep.images.hashes import NEAR_LIMIT
    from data_prep.videos.opening import VideoLimits, contact_sheet, open_frames, read_frames, read_video

_LATER = {
    "Collected": "data_prep.audit.collect",
    "collect": "data_prep.audit.collect",
    "overlap": "data_prep.audit.defects",
    "NEAR_LIMIT": "data_prep.images.hashes",
    "VideoLimits": "data_prep.videos.opening",
    "contact_sheet": "data_prep.videos.opening",
    "open_frames": "data_prep.videos.opening",
    "read_frames": "data_prep.videos.opening",
    "read_video": "data_prep.videos.opening",
}

__all__ = [
    "IMAGE_PLACEHOLDER",
    "NEAR_LIMIT",
    "VIDEO_PLACEHOLDER",
    "Collected",
    "DataError",
    "ImageLimits",
    "ImageSource",
    "Row",
    "RowError",
    "Turn",
    "VideoLimits",
    "VideoSource",
    "collect",
    "contact_sheet",
    "load_rows",
    "open_frames",
    "open_image",
    "overlap",
    "read_frames",
    "read_image",
    "read_video",
    "resolve_image_path",
    "scan_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'data_prep' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
