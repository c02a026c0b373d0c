"""The compiled operations: arrays in, arrays out."""
