"""Errors that only this library can raise. Wrong values and kinds are plain ValueError and TypeError."""


class EnsembleADError(Exception):
    """Base of the errors that are this library's own."""


class MissingExtraError(EnsembleADError, ImportError):
    """A package is missing that an extra of ensemblead installs; the message names the extra."""


class UnreadableImageError(EnsembleADError, ValueError):
    """An image file that cannot be decoded, or whose pixels have no defined range; the message names it."""


class WeightsUnavailableError(EnsembleADError):
    """Published weights that can be had neither from the local cache nor from the network."""
