"""What the training scripts share. Each script keeps its own loss, step and loop: nothing here calls them back."""

from jaxrnn.training.config import RunConfig, option, parse
from jaxrnn.training.console import Failure, exit_code, progress, require, say
from jaxrnn.training.data import Order, pad
from jaxrnn.training.devices import ROWS, chief, deal, place, start, value_and_grad
from jaxrnn.training.folder import Folder, make_folder, open_folder, write_whole
from jaxrnn.training.plots import figure
from jaxrnn.training.run import Run

__all__ = [
    "ROWS",
    "Failure",
    "Folder",
    "Order",
    "Run",
    "RunConfig",
    "chief",
    "deal",
    "exit_code",
    "figure",
    "make_folder",
    "open_folder",
    "option",
    "pad",
    "parse",
    "place",
    "progress",
    "require",
    "say",
    "start",
    "value_and_grad",
    "write_whole",
]
