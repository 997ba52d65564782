"""Labelled images and texts: where they come from, how they are split, batched and augmented."""

from frostbit.data.augment import Augment, random_crop, random_flip
from frostbit.data.dataset import Dataset, Split, load
from frostbit.data.loader import Loader
from frostbit.data.sources import list_sources as list
from frostbit.data.stream import StreamSplit

__all__ = ["Augment", "Dataset", "Loader", "Split", "StreamSplit", "list", "load", "random_crop", "random_flip"]
