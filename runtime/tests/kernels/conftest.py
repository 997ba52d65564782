"""Property tests here compile on their first example and then take microseconds: no deadline per example."""

from hypothesis import settings

settings.register_profile("kernels", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("kernels")
