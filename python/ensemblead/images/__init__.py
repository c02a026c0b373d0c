"""Files and arrays in, uint8 network input out: decode, resize, crop, batch with prefetch."""

from ensemblead.images.batches import BatchIterator, ImageBatch, SkippedImage, iterate_batches
from ensemblead.images.decode import IMAGE_SUFFIXES, MAX_PIXELS, read_image, upright_size
from ensemblead.images.depth import BIT_DEPTHS, BitDepthWarning
from ensemblead.images.folders import check_normal_folder, check_output_outside
from ensemblead.images.geometry import Geometry
from ensemblead.images.masks import examine_mask, read_mask
from ensemblead.images.replay import Replay
from ensemblead.images.sources import ImageSource, detect_bits, open_images

__all__ = [
    "BIT_DEPTHS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "BatchIterator",
    "BitDepthWarning",
    "Geometry",
    "ImageBatch",
    "ImageSource",
    "Replay",
    "SkippedImage",
    "check_normal_folder",
    "check_output_outside",
    "detect_bits",
    "examine_mask",
    "iterate_batches",
    "open_images",
    "read_image",
    "read_mask",
    "upright_size",
]
