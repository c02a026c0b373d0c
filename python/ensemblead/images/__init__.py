"""Files and arrays in, uint8 network input out: decode, resize, crop, batch, read again."""

from ensemblead.images.batches import BatchIterator, ImageBatch, SkippedImage, iterate_batches
from ensemblead.images.decode import IMAGE_SUFFIXES, MAX_PIXELS, read_image, upright_size
from ensemblead.images.depth import BIT_DEPTHS, BitDepthWarning
from ensemblead.images.folders import check_normal_folder, check_output_outside
from ensemblead.images.geometry import Geometry
from ensemblead.images.masks import examine_mask, read_mask
from ensemblead.images.region import Region, RegionLike
from ensemblead.images.sources import ImageSource, are_files, chosen_images, detect_bits, open_images
from ensemblead.images.spool import Images, ImageSet
from ensemblead.images.tiles import AS_IS, Tiles, Window

__all__ = [
    "AS_IS",
    "BIT_DEPTHS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "BatchIterator",
    "BitDepthWarning",
    "Geometry",
    "ImageBatch",
    "ImageSet",
    "ImageSource",
    "Images",
    "Region",
    "RegionLike",
    "SkippedImage",
    "Tiles",
    "Window",
    "are_files",
    "check_normal_folder",
    "check_output_outside",
    "chosen_images",
    "detect_bits",
    "examine_mask",
    "iterate_batches",
    "open_images",
    "read_image",
    "read_mask",
    "upright_size",
]
