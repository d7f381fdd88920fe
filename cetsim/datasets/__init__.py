"""Published data sets, read from their files, and the order in which images are shown."""

from cetsim.datasets.data_files import DataError
from cetsim.datasets.input_order import Frames, InputOrder
from cetsim.datasets.published import Dataset, load, split_validation

__all__ = ["DataError", "Dataset", "Frames", "InputOrder", "load", "split_validation"]
