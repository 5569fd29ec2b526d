"""A stack: layers × directions of one cell, time first, as a pure description with `init`, `apply` and `step`. Everything
random (the dropout family) is drawn here, once, outside the loop. No loop over time and no layout but time first."""

from dataclasses import InitVar, dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.cells.base import Cell, axis_names, given
from jaxrnn.unroll import unroll


@dataclass(frozen=True)
class Stack:
    """Layers and directions of a cell; frozen, hashable, holding no arrays.

    Args:
        cell: the description of one step.
        input_size: width of the input.
        hidden_size: hidden size of every layer, or a tuple with one for each.
        num_layers: layers, each reading the outputs of the one before.
        bidirectional: run every layer in both directions of time.
        bias: whether the gates have biases.
        merge: how the outputs of the two directions become one: "concat", "sum", "mean", or "none": they never meet, the
            output is a pair.
        connection: "residual": from the second layer on, a layer's output adds its input. "skip": every layer also reads the
            stack's input, and the output holds the outputs of all layers (Graves, 2013, arXiv:1308.0850, section 2).
        dropout: rate of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's.
        input_dropout: the same on the input of every layer, one draw for the whole sequence (Gal & Ghahramani, 2016,
            arXiv:1512.05287).
        recurrent_dropout: the same on what the recurrent products read of `h`, one draw for the whole sequence (ibid.).
        zoneout: rate at which entries of the state keep their value (Krueger et al., 2017, arXiv:1606.01305); without
            randomness the state moves by the expected share.
        weight_dropout: rate of dropout on `w_hh`, one draw for the whole sequence (Merity et al., 2018, arXiv:1708.02182).
        learn_initial_state: whether the initial state is a parameter; else zeros.
        remat: compute again in the backward pass, see `unroll`.
        truncate: stop the gradient, but not the state, after every so many steps: truncated backpropagation through time.
        dtype: to compute in; `None`: what input and parameters promote to.
        param_dtype: to store parameters in.
        caller: whom errors name.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import LSTMCell, Stack
        >>> stack = Stack(LSTMCell(), 3, 5, num_layers=2, bidirectional=True)
        >>> params = stack.init(jax.random.key(0))
        >>> output, states = stack.apply(params, jnp.ones((7, 4, 3)))
        >>> output.shape, len(states), states[1][0].c.shape
        ((7, 4, 10), 2, (4, 5))
    """

    cell: Cell
    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    merge: Literal["concat", "sum", "mean", "none"] = "concat"
    connection: Literal["none", "residual", "skip"] = "none"
    dropout: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    weight_dropout: float = 0.0
    learn_initial_state: bool = False
    remat: bool = False
    truncate: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    caller: InitVar[str] = "Stack"

    def __post_init__(self, caller: str):
        checks.kind(caller, "cell", self.cell, Cell)
        checks.stack(self, caller)

    @property
    def num_directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """The hidden size of each layer."""
        return self.hidden_size if isinstance(self.hidden_size, tuple) else (self.hidden_size,) * self.num_layers

    @property
    def layer_output_sizes(self) -> tuple[int, ...]:
        """The width of each layer's merged output (with merge="none", of one direction's)."""
        wide = self.num_directions if self.merge == "concat" else 1
        return tuple(self.cell.output_size(hidden) * wide for hidden in self.hidden_sizes)

    @property
    def layer_input_sizes(self) -> tuple[int, ...]:
        """The width of what each layer reads."""
        skipped = self.input_size if self.connection == "skip" else 0
        return (self.input_size, *(size + skipped for size in self.layer_output_sizes[:-1]))

    @property
    def output_size(self) -> int:
        """The width of the output."""
        return sum(self.layer_output_sizes) if self.connection == "skip" else self.layer_output_sizes[-1]

    @property
    def random(self) -> bool:
        """Whether anything is drawn in training."""
        rates = (self.dropout, self.input_dropout, self.recurrent_dropout, self.zoneout, self.weight_dropout)
        return any(rate > 0 for rate in rates)

    def describe(self) -> str:
        """The sizes, and whatever is not the default, as in a call."""
        sizes = [str(self.input_size), str(self.hidden_size)]
        return ", ".join(sizes + given(self, "cell", "input_size", "hidden_size") + given(self.cell))

    def __repr__(self):
        sizes = [repr(self.cell), str(self.input_size), str(self.hidden_size)]
        return f"Stack({', '.join(sizes + given(self, 'cell', 'input_size', 'hidden_size'))})"

    def init(self, key):
        """Draw `params[layer][direction]` from a key."""
        checks.prng_key("Stack.init", key)
        keys = iter(jax.random.split(key, self.num_layers * self.num_directions))
        sizes = zip(self.layer_input_sizes, self.hidden_sizes, strict=True)
        return tuple(
            tuple(
                self.cell.init(next(keys), input_size, hidden_size, bias=self.bias, dtype=self.param_dtype)
                for _ in range(self.num_directions)
            )
            for input_size, hidden_size in sizes
        )

    def axis_names(self, params):
        """The name of each axis of each array of `params`, or of states: `[layer][direction]`, a tuple for every array.

        To be mapped to the axes of a mesh: "hidden" is the one to shard, "input", "output" (of `h`, where it is read) and
        "gates" stay whole.
        """
        return None if params is None else tuple(tuple(axis_names(p) for p in layer) for layer in params)

    def init_state(self, params):
        """The learned initial state before training, zeros without batch axes: `[layer][direction]`; or None."""
        if not self.learn_initial_state:
            return None

        def zeros(cell_params):
            x = jax.ShapeDtypeStruct((1,) * (self.cell.event_ndim - 1) + (cell_params.w_ih.shape[-3],), self.param_dtype)
            shapes = jax.eval_shape(self.cell.initial_state, cell_params, x)
            return jax.tree.map(lambda s: jnp.zeros(s.shape[-1:], self.param_dtype), shapes)

        return tuple(tuple(zeros(p) for p in layer) for layer in params)

    def apply(
        self,
        params,
        xs,
        states=None,
        *,
        initial=None,
        lengths=None,
        mask=None,
        reset=None,
        key=None,
        return_states=False,
    ):
        """Run the stack over `xs` (time, *batch, input).

        Args:
            params: `[layer][direction]`, from `init`.
            xs: the inputs.
            states: where to start, `[layer][direction]`; `None` means `initial`.
            initial: what `reset` returns to, `[layer][direction]`; `None` means zeros.
            lengths, mask, reset: as in `unroll`.
            key: for the dropout family; `None` draws nothing: the deterministic form.
            return_states: also return every state, `[layer][direction]`.

        Returns:
            (output, states), or (output, states, every_state): the output (time, *batch, output_size), the final states
            `[layer][direction]`.

        Raises:
            ValueError: a shape or a concrete value does not fit. TypeError: something is of the wrong kind.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from jaxrnn import GRUCell, Stack
            >>> stack = Stack(GRUCell(), 3, 5, num_layers=2)
            >>> params = stack.init(jax.random.key(0))
            >>> whole, _ = stack.apply(params, jnp.ones((7, 3)))
            >>> first, states = stack.apply(params, jnp.ones((4, 3)))
            >>> last, _ = stack.apply(params, jnp.ones((3, 3)), states)
            >>> bool(jnp.allclose(jnp.concatenate([first, last]), whole, atol=1e-6))
            True
        """
        for argument, value in (("params", params), ("states", states), ("initial", initial)):
            checks.nesting("Stack.apply", argument, value, self.num_layers, self.num_directions)
        keys = [None] * self.num_layers if key is None else jax.random.split(key, self.num_layers)
        where = {"lengths": lengths, "mask": mask, "reset": reset}
        reads, ys, outputs, finals, every = (xs,), (xs,), [], [], []
        for layer, (layer_params, layer_key) in enumerate(zip(params, keys, strict=True)):
            k_input, k_output, *k_directions = _split(layer_key, 2 + self.num_directions)
            reads = tuple(_dropout(k_input, x, self.input_dropout, over_time=True) for x in reads)
            runs = [
                self._direction(direction, cell_params, reads[-1 if direction else 0], k_directions[direction], where,
                                 return_states, *(None if t is None else t[layer][direction] for t in (states, initial)))
                for direction, cell_params in enumerate(layer_params)
            ]  # fmt: skip
            final, outs, *all_states = zip(*runs, strict=True)
            finals.append(final)
            every.extend(all_states)
            merged = self._merge(outs)
            if self.connection == "residual" and layer > 0:
                merged = tuple(y + x for y, x in zip(merged, ys, strict=True))
            ys = merged
            outputs.append(ys)
            reads = tuple(_dropout(k_output, y, self.dropout) for y in ys)
            if self.connection == "skip":
                reads = tuple(jnp.concatenate([xs.astype(y.dtype), y], axis=-1) for y in reads)
        if self.connection == "skip":
            ys = tuple(jnp.concatenate(layers, axis=-1) for layers in zip(*outputs, strict=True))
        output = ys if self.merge == "none" and self.bidirectional else ys[0]
        return (output, tuple(finals), tuple(every)) if return_states else (output, tuple(finals))

    def step(self, params, x, states=None, *, initial=None):
        """Run one step through a stack of one direction: (output, states), equal to `apply` over a sequence in pieces.

        Args:
            params: `[layer][direction]`, from `init`.
            x: the input at one step (*batch, input).
            states: where the step starts, `[layer][direction]`; `None` means `initial`.
            initial: as in `apply`.

        Raises:
            ValueError: the stack is bidirectional; its backward direction needs the end of the sequence first.
        """
        checks.one_direction("Stack.step", self.bidirectional)
        output, states = self.apply(params, x[None], states, initial=initial)
        return output[0], states

    def _direction(self, direction, params, xs, key, where, return_states, state, initial):
        """Unroll one direction of one layer, with what is drawn for it."""
        k_h, k_zoneout, k_w = _split(key, 3)
        like = jax.eval_shape(self.cell.initial_state, params, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype))
        h_scale = None
        if k_h is not None and self.recurrent_dropout:
            h_scale = _dropout(k_h, jnp.ones(like.h.shape, jnp.float32), self.recurrent_dropout)
        zoneout = [float(self.zoneout)] * len(like)
        if k_zoneout is not None:
            k_fields = jax.random.split(k_zoneout, len(like))
            zoneout = [_bernoulli(k, self.zoneout, (xs.shape[0], *s.shape)) for k, s in zip(k_fields, like, strict=True)]
        return unroll(
            self.cell,
            params._replace(w_hh=_dropout(k_w, params.w_hh, self.weight_dropout)),
            xs,
            state,
            initial=initial,
            reverse=direction == 1,
            return_states=return_states,
            remat=self.remat,
            truncate=self.truncate,
            h_scale=h_scale,
            zoneout=type(like)(*zoneout) if self.zoneout else None,
            dtype=self.dtype,
            **where,
        )

    def _merge(self, ys) -> tuple:
        """The outputs of the directions, as one; or as they are, if they never meet."""
        if len(ys) == 1 or self.merge == "none":
            return ys
        if self.merge == "concat":
            return (jnp.concatenate(ys, axis=-1),)
        return (ys[0] + ys[1] if self.merge == "sum" else (ys[0] + ys[1]) / 2,)


def _split(key, count: int):
    """`count` keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def _bernoulli(key, rate: float, shape):
    """Draw True at a rate; in float32, so that 64-bit numbers being on changes no draw."""
    return jax.random.bernoulli(key, jnp.float32(rate), shape)


def _dropout(key, x, rate: float, *, over_time: bool = False):
    """Inverted dropout; `over_time` draws one mask for all steps. Without a key, or at rate 0, `x` itself."""
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    keep = _bernoulli(key, 1 - rate, (1, *x.shape[1:]) if over_time else x.shape)
    keep = jnp.zeros_like(x, dtype=bool) | jnp.broadcast_to(keep, x.shape)  # sharded as `x`, which a fresh draw is not
    return jnp.where(keep, x / float(1 - rate), jnp.zeros_like(x))
