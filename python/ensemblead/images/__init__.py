"""Files and arrays in, uint8 network input out: decode, resize, crop, batch, read again."""

from ensemblead.images.batches import BatchIterator, ImageBatch, SkippedImage, iterate_batches
from ensemblead.images.decode import IMAGE_SUFFIXES, read_image, read_mask, upright_size
from ensemblead.images.geometry import Geometry
from ensemblead.images.sources import ImageSource, open_images
from ensemblead.images.spool import Images, ImageSet
from ensemblead.images.tiles import AS_IS, Tiles, Window

__all__ = [
    "AS_IS",
    "IMAGE_SUFFIXES",
    "BatchIterator",
    "Geometry",
    "ImageBatch",
    "ImageSet",
    "ImageSource",
    "Images",
    "SkippedImage",
    "Tiles",
    "Window",
    "iterate_batches",
    "open_images",
    "read_image",
    "read_mask",
    "upright_size",
]
