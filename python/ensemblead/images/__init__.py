"""Files and arrays in, uint8 network input out: decode, resize, crop, batch with prefetch."""

from ensemblead.images.batches import BatchIterator, ImageBatch, SkippedImage, iterate_batches
from ensemblead.images.decode import IMAGE_SUFFIXES, read_image, read_mask, upright_size
from ensemblead.images.geometry import Geometry
from ensemblead.images.replay import Replay
from ensemblead.images.sources import ImageSource, open_images

__all__ = [
    "IMAGE_SUFFIXES",
    "BatchIterator",
    "Geometry",
    "ImageBatch",
    "ImageSource",
    "Replay",
    "SkippedImage",
    "iterate_batches",
    "open_images",
    "read_image",
    "read_mask",
    "upright_size",
]
