"""Many detectors on many data sets: what to run, what is done."""
