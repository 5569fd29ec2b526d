"""What the training scripts share. Each script keeps its own loss, step and loop: nothing here calls them back."""

from jaxrnn.training.config import option, parse
from jaxrnn.training.console import Failure, exit_code, progress, require, say
from jaxrnn.training.folder import make_folder

__all__ = ["Failure", "exit_code", "make_folder", "option", "parse", "progress", "require", "say"]
