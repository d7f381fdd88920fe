"""Published data sets, read from their files, data with shortcuts, and the order in which images are shown."""

from cetsim.datasets.data_files import DataError
from cetsim.datasets.grouped_files import GroupedFiles, celeba, waterbirds
from cetsim.datasets.input_order import Frames, InputOrder
from cetsim.datasets.published import Dataset, load, split_validation
from cetsim.datasets.shortcuts import Attacked, Grouped, PastedWords, Shortcut, coloured_digits, pasted_words

__all__ = [
    "Attacked",
    "DataError",
    "Dataset",
    "Frames",
    "Grouped",
    "GroupedFiles",
    "InputOrder",
    "PastedWords",
    "Shortcut",
    "celeba",
    "coloured_digits",
    "load",
    "pasted_words",
    "split_validation",
    "waterbirds",
]
