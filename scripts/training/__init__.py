"""What the training scripts share. Each script keeps its own loss, step and loop: nothing here calls them back."""

from training.config import RunConfig, option, parse
from training.console import Failure, Progress, exit_code, log, require
from training.devices import ROWS, is_main_process, place, shard_batch, start
from training.folder import Folder, check_own, make_folder, open_folder, own_folder, read_text, write_whole
from training.plots import cell_style, figure
from training.run import Run, save_model
from training.sampler import BatchSampler

__all__ = [
    "ROWS",
    "BatchSampler",
    "Failure",
    "Folder",
    "Progress",
    "Run",
    "RunConfig",
    "cell_style",
    "check_own",
    "exit_code",
    "figure",
    "is_main_process",
    "log",
    "make_folder",
    "open_folder",
    "option",
    "own_folder",
    "parse",
    "place",
    "read_text",
    "require",
    "save_model",
    "shard_batch",
    "start",
    "write_whole",
]
