"""Files and arrays in, uint8 network input out: decode, resize, crop, batch, read again."""

from ensemblead.images.augmented import Augmented
from ensemblead.images.batches import BatchIterator, ImageBatch, SkippedImage, iterate_batches
from ensemblead.images.changes import CHANGES, Change, Copy, Turn, copies_of
from ensemblead.images.decode import IMAGE_SUFFIXES, MAX_PIXELS, EncodedImage, read_image, upright_size
from ensemblead.images.depth import BIT_DEPTHS, BitDepthWarning
from ensemblead.images.folders import check_defect_folder, check_normal_folder, check_output_outside
from ensemblead.images.geometry import Geometry
from ensemblead.images.lists import (
    LIST_SUFFIXES,
    ImageList,
    equal_files,
    listed_images,
    read_list,
    without_images,
)
from ensemblead.images.masks import examine_mask, read_mask
from ensemblead.images.region import Region, RegionLike
from ensemblead.images.sources import ImageSource, are_files, chosen_images, detect_bits, open_images
from ensemblead.images.spool import Images, ImageSet
from ensemblead.images.tiles import AS_IS, Tiles, Window

__all__ = [
    "AS_IS",
    "BIT_DEPTHS",
    "CHANGES",
    "IMAGE_SUFFIXES",
    "LIST_SUFFIXES",
    "MAX_PIXELS",
    "Augmented",
    "BatchIterator",
    "BitDepthWarning",
    "Change",
    "Copy",
    "EncodedImage",
    "Geometry",
    "ImageBatch",
    "ImageList",
    "ImageSet",
    "ImageSource",
    "Images",
    "Region",
    "RegionLike",
    "SkippedImage",
    "Tiles",
    "Turn",
    "Window",
    "are_files",
    "check_defect_folder",
    "check_normal_folder",
    "check_output_outside",
    "chosen_images",
    "copies_of",
    "detect_bits",
    "equal_files",
    "examine_mask",
    "iterate_batches",
    "listed_images",
    "open_images",
    "read_image",
    "read_list",
    "read_mask",
    "upright_size",
    "without_images",
]
