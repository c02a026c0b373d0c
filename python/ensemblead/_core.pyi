"""The compiled core. Only `ensemblead.kernels` (and the package's own description of itself) uses it."""

# What was compiled in.
__version__: str
cuda_decision: str
compiler: str

def cuda_available() -> bool: ...
def instruction_set() -> str: ...
