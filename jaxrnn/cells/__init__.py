"""The registry of cells: one row per cell. No code may live here."""

from jaxrnn.cells.base import Cell, GatedCell, GateParams, Hidden, LSTMState, axis_names
from jaxrnn.cells.conv import ConvGRU1DCell, ConvGRU2DCell, ConvLSTM1DCell, ConvLSTM2DCell
from jaxrnn.cells.elementwise import DiagonalCell, LinearCell
from jaxrnn.cells.gru import ChungGRUCell, GRUCell
from jaxrnn.cells.layer_norm import LayerNormGRUCell, LayerNormLSTMCell
from jaxrnn.cells.li_gru import LiGRUCell
from jaxrnn.cells.lru import LRUCell, RGLRUCell
from jaxrnn.cells.lstm import LSTMCell
from jaxrnn.cells.lstm_variants import CoupledLSTMCell, PeepholeLSTMCell, ProjectedLSTMCell
from jaxrnn.cells.min_gated import MinGRUCell, MinLSTMCell
from jaxrnn.cells.minimal import IndRNNCell, MGUCell
from jaxrnn.cells.para import ParaGRUCell, ParaLSTMCell
from jaxrnn.cells.rnn import RNNCell
from jaxrnn.cells.slstm import SLSTMCell, SLSTMState

CELLS: dict[str, type[Cell]] = {
    "RNN": RNNCell,
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "ChungGRU": ChungGRUCell,
    "PeepholeLSTM": PeepholeLSTMCell,
    "CoupledLSTM": CoupledLSTMCell,
    "ProjectedLSTM": ProjectedLSTMCell,
    "LayerNormLSTM": LayerNormLSTMCell,
    "LayerNormGRU": LayerNormGRUCell,
    "MGU": MGUCell,
    "IndRNN": IndRNNCell,
    "ConvLSTM1D": ConvLSTM1DCell,
    "ConvLSTM2D": ConvLSTM2DCell,
    "LiGRU": LiGRUCell,
    "SLSTM": SLSTMCell,
    "ConvGRU1D": ConvGRU1DCell,
    "ConvGRU2D": ConvGRU2DCell,
    "MinGRU": MinGRUCell,
    "MinLSTM": MinLSTMCell,
    "LRU": LRUCell,
    "RGLRU": RGLRUCell,
    "ParaGRU": ParaGRUCell,
    "ParaLSTM": ParaLSTMCell,
}

__all__ = [  # in full, since type checkers read it
    "CELLS",
    "Cell",
    "ChungGRUCell",
    "ConvGRU1DCell",
    "ConvGRU2DCell",
    "ConvLSTM1DCell",
    "ConvLSTM2DCell",
    "CoupledLSTMCell",
    "DiagonalCell",
    "GRUCell",
    "GateParams",
    "GatedCell",
    "Hidden",
    "IndRNNCell",
    "LRUCell",
    "LSTMCell",
    "LSTMState",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LiGRUCell",
    "LinearCell",
    "MGUCell",
    "MinGRUCell",
    "MinLSTMCell",
    "ParaGRUCell",
    "ParaLSTMCell",
    "PeepholeLSTMCell",
    "ProjectedLSTMCell",
    "RGLRUCell",
    "RNNCell",
    "SLSTMCell",
    "SLSTMState",
    "axis_names",
]
