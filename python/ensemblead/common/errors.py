"""Errors that only this library can raise. Wrong values and kinds are plain ValueError and TypeError."""


class EnsembleADError(Exception):
    """Base of the errors that are this library's own.

    Example:
        >>> import ensemblead as ead
        >>> try:
        ...     ead.PatchCore("gabor").predict("images")
        ... except ead.EnsembleADError as error:
        ...     print(error)
        cannot predict: this PatchCore is not fitted; call fit first
    """


class MissingExtraError(EnsembleADError, ImportError):
    """A package is missing that an extra of ensemblead installs; the message names the extra."""


class UnreadableImageError(EnsembleADError, ValueError):
    """An image file that cannot be decoded, or whose pixels have no defined range; the message names it."""


class ImageTooLargeError(UnreadableImageError):
    """An image with more pixels than are decoded, by its header; the message names it and the limit."""


class WeightsUnavailableError(EnsembleADError):
    """Published weights that can be had neither from the local cache nor from the network."""


class NotFittedError(EnsembleADError, RuntimeError):
    """Something was asked of a detector or a memory bank that only a fitted one can answer."""


class NonFiniteFeaturesError(EnsembleADError, ArithmeticError):
    """A network returned NaN or infinity; the message says in which precision."""


class NonFiniteLossError(EnsembleADError, ArithmeticError):
    """A loss that became NaN or infinity; the message says at which step, and of which parts."""


class IllConditionedError(EnsembleADError, ArithmeticError):
    """Features of a size that their covariances cannot be computed with."""


class CompilationError(EnsembleADError):
    """`torch.compile` is not to be had here, or not for this network; the message says why."""


class EngineError(EnsembleADError):
    """A network that an engine cannot run, or runs otherwise than torch; the message says what was seen."""


class ConversionError(EnsembleADError):
    """A converted detector whose scores are not those of the tool that it comes from; nothing is written."""


class NotExportableError(EnsembleADError, ValueError):
    """A detector that cannot be written as one graph; the message says why."""


class ExportError(EnsembleADError):
    """An exported graph that does not compute what its detector does; the message says how far off it is, and
    on which image.

    Attributes: `report`, the comparison image by image.
    """

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class PartialFitError(EnsembleADError, RuntimeError):
    """Work on an executor that did not come to its end; what is done is kept, and the same call goes on.

    Attributes: `done` and `missing`, the names of the units of work.
    """

    def __init__(self, message: str, done: tuple[str, ...] = (), missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.done, self.missing = done, missing


class DetectorCheckError(EnsembleADError, AssertionError):
    """A detector that breaks a promise; the message names the check, the promise, and what was seen."""


class DamagedModelError(EnsembleADError):
    """A saved model that is incomplete or was altered: a file is missing, is not what the manifest says, or
    the manifest states what no detector can have. What depends on the machine (a device, a published network
    that the installed version of timm does not know, or knows with other layers) is a ValueError."""


class IndexBusyError(EnsembleADError):
    """An image index that another process, or another object of this one, is writing to; reading goes on."""


class NewerFormatError(EnsembleADError):
    """A saved model written by a later version of this library."""


class BackboneUnavailableError(EnsembleADError):
    """A saved model's network cannot be had from where it came; the message says what to pass to `load`."""
