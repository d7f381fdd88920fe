"""Published data sets, read from their files, data with shortcuts, and the order in which images are shown."""

from cetsim.datasets.captioned import VOCABULARY, Captioned, CaptionedDigits, all_facts, captioned_digits, captions_of
from cetsim.datasets.data_files import DataError
from cetsim.datasets.grouped_files import GroupedFiles, celeba, waterbirds
from cetsim.datasets.input_order import Frames, InputOrder
from cetsim.datasets.published import Dataset, load, split_validation
from cetsim.datasets.shortcuts import Attacked, Grouped, PastedWords, Shortcut, coloured_digits, pasted_words

__all__ = [
    "VOCABULARY",
    "Attacked",
    "Captioned",
    "CaptionedDigits",
    "DataError",
    "Dataset",
    "Frames",
    "Grouped",
    "GroupedFiles",
    "InputOrder",
    "PastedWords",
    "Shortcut",
    "all_facts",
    "captioned_digits",
    "captions_of",
    "celeba",
    "coloured_digits",
    "load",
    "pasted_words",
    "split_validation",
    "waterbirds",
]
