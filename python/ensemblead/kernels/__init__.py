"""The compiled operations: arrays in, arrays out."""

from ensemblead.common.threads import quota_threads, sleeping_threads

QUOTA_THREADS = quota_threads()  # 0: the core decides
with sleeping_threads():  # the core brings OpenMP, which reads the environment when it is loaded
    from ensemblead import _core as _core
