"""Helpers that know nothing of images or detectors: errors, extras, warnings, validation, files, memory."""
