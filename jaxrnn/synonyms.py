"""What arguments are called elsewhere, in one table; and the check of a call's arguments that answers with our names. Nothing about
recurrence may live here."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache, wraps
from inspect import Parameter, Signature, signature
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

SYNONYMS: dict[str, tuple[str, ...]] = {
    "input_size": ("input_dim", "input_features", "in_features", "in_size", "input_width", "n_inputs", "ninp", "inp_size", "d_in"),
    "output_size": ("num_classes", "n_classes", "classes", "out_features", "output_dim", "output_features", "out_size", "d_out"),
    "hidden_size": (
        "units", "features", "hidden_features", "hidden_dim", "hidden_units", "hidden", "num_units", "n_hidden", "nhid",
        "num_hidden", "cell_size", "rnn_size", "state_size", "d_model", "d_hidden", "out_features", "output_dim",
    ),
    "num_layers": ("layers", "n_layers", "nlayers", "depth", "num_rnn_layers", "layer_num"),
    "bias": ("use_bias", "with_bias"),
    "bidirectional": ("bidir", "birnn", "bi"),
    "dropout": ("dropout_rate", "drop_rate", "rate", "p", "dropout_p"),
    "recurrent_dropout": ("variational_dropout", "hidden_dropout", "dropouth", "rec_dropout"),
    "input_dropout": ("dropouti",),
    "weight_dropout": ("dropconnect", "weight_drop", "wdrop", "wdrop_rate"),
    "merge": ("merge_mode",),
    "residual": ("residual_connections", "skip"),
    "learn_initial_state": ("learnable_initial_state", "learn_h0", "trainable_initial_state", "train_initial_state"),
    "truncate": ("tbptt", "bptt", "tbptt_steps", "truncation"),
    "remat": ("checkpoint", "use_remat", "gradient_checkpointing"),
    "nonlinearity": ("activation", "activation_fn", "act"),
    "proj_size": ("projection_size", "num_proj", "proj_dim"),
    "rngs": ("rng", "key", "seed", "prng_key"),
    "w_ih_init": ("kernel_init", "kernel_initializer", "weight_init", "w_init", "w_i_init"),
    "w_hh_init": ("recurrent_kernel_init", "recurrent_initializer", "w_h_init"),
    "b_ih_init": ("bias_init", "bias_initializer", "b_init"),
    "lengths": (
        "seq_lengths", "seq_length", "sequence_length", "sequence_lengths", "seq_lens", "seq_len", "input_lengths", "x_lengths",
        "lens", "seqlens", "batch_lengths", "sequence_lens",
    ),
    "mask": ("valid", "valid_mask", "input_mask", "sequence_mask"),
    "reset": ("done", "dones", "resets", "is_first", "episode_starts", "first", "starts", "terminated", "restart"),
    "h_0": (
        "hx", "h0", "initial_carry", "init_carry", "carry", "initial_state", "init_state", "state", "states", "hidden",
        "hidden_state", "h_prev", "init_hidden", "initial_states",
    ),
    "x": ("xs", "input", "inputs", "sequence", "sequences", "input_seq", "x_t", "data", "sequence_input"),
    "key": ("rngs", "rng", "seed", "prng_key"),
    "per_step": ("step_inputs", "side_inputs"),
    "context": ("memory", "encoder_output", "constants"),
    "return_states": ("return_all_states", "return_hidden_states", "output_hidden_states"),
    "output_only": ("return_output_only", "only_output"),
    "time_axis": ("sequence_axis", "seq_axis"),
    "reverse": ("go_backwards", "backward", "backwards"),
    "dtype": ("compute_dtype",),
    "param_dtype": ("params_dtype", "weight_dtype"),
    "batch_shape": ("batch_size", "batch", "batch_dims", "input_shape"),
    "state": ("carry", "h_0", "hx", "h0", "initial_state", "initial_carry", "init_state", "hidden", "hidden_state", "states"),
    "states": ("state", "carry", "h_0", "hx", "h0", "initial_state", "initial_carry", "hidden"),
    "xs": ("x", "input", "inputs", "sequence", "sequences"),
    "to": ("maxlen", "max_len", "max_length", "pad_to", "total_length"),
    "buckets": ("num_buckets", "n_buckets"),
}  # fmt: skip
"""Our names, and what others call the same thing. Where a name stands twice, the one that the function has is meant."""

PAIR = "A module gives (output, h_n): the outputs of all steps, and the final states."
MODES = "In NNX, `module.train()` and `module.eval()` say it; in Linen, deterministic=False or True."
DRAWS = "A module draws from the `rngs` that it was made with; functions of the core take `key`."
BOTH_WAYS = "`unroll` has reverse=True; a module has bidirectional=True, and gives both directions."
FORGETFUL = "Write Recurrent(LSTMCell(b_ih_init=jaxrnn.initializers.forget_bias()), …)."
PADDED = "Padding is zeros, at the end: `lengths` say what is valid, so that nothing depends on it."
INSIDE = "The scan over time is inside: call the module with the whole sequence."

ADVICE: dict[str, str] = {
    **dict.fromkeys(("time_major", "batch_major"), "Time first is batch_first=False, an argument of the constructor."),
    "batch_first": "Constructors of modules take it; SequenceModel and `pad` are batch first, functions of the core time first.",
    **dict.fromkeys(("return_sequences", "return_state", "return_carry"), PAIR),
    **dict.fromkeys(("c_0", "c0", "cx"), "Pass both in one: h_0=(h_0, c_0). In the core that is state=LSTMState(h_0, c_0)."),
    "carry_init": "Give a start to a call, h_0=…, or train it, learn_initial_state=True; else the cell's own is taken.",
    **dict.fromkeys(("padding_value", "pad_value", "padding", "padding_side"), PADDED),
    "stateful": "A module holds no state: give the h_n of one call to the next, h_0=h_n.",
    **dict.fromkeys(("training", "train", "is_training", "deterministic"), MODES),
    **dict.fromkeys(("rngs", "rng", "key"), DRAWS),
    **dict.fromkeys(("go_backwards", "reverse"), BOTH_WAYS),
    "keep_order": "Outputs of a backward direction always stand at the steps that they belong to.",
    **{
        name: f"Here `mask` is True where a step is valid: write mask=~{name} if yours is True in the padding."
        for name in ("padding_mask", "key_padding_mask", "src_key_padding_mask", "pad_mask", "paddings")
    },
    "attention_mask": "Here `mask` is boolean or 0/1, 1 where a step is valid: write mask=attention_mask.",
    "enforce_sorted": "Rows need no order: give `lengths` as they are.",
    **dict.fromkeys(("unit_forget_bias", "forget_bias"), FORGETFUL),
    "reset_after": "GRUCell resets after the product, ChungGRUCell before it.",
    "cell_type": "Each kind has its class: RNN, LSTM, GRU; any cell goes into Recurrent(cell, …).",
    "unroll": "How many steps the compiled loop takes at once is the library's choice.",
    "activation": "Write Recurrent(LSTMCell(activation=…), …).",
    "recurrent_activation": "Write Recurrent(LSTMCell(recurrent_activation=…), …).",
    **dict.fromkeys(("variable_axes", "split_rngs", "variable_broadcast"), INSIDE),
    "initial_state": "States are arguments of a call; learn_initial_state=True makes the start a parameter.",
    **{
        name: f"Modules and `Stack` have it, models don't: put an nnx.Linear on the output of a module with {name}=… instead."
        for name in ("merge", "residual", "skip_connections", "output_only")
    },
    "options": "What it held are arguments by themselves.",
}
"""Names elsewhere for what is done otherwise here, and what to do."""

AT_THE_END = ("done", "dones", "terminated")
AT_THE_START = "and is true where an episode begins: it is `done` of the step before"
"""What is said of those, which are true where one ends."""

OF_CELLS = ("w_ih_init", "w_hh_init", "b_ih_init", "b_hh_init", "nonlinearity")
SIZED = "A cell has no sizes: they go to `cell.init(key, input_size, hidden_size)`, or to Recurrent(cell, input_size, hidden_size)."
SIZES = ("input_size", "hidden_size", "num_layers")
BOTH_SIZES = "input_size and hidden_size are both wanted: none is inferred from an input."


def hint(argument: str, known) -> str:
    """What to write in the place of an argument that is none of those `known`; "" if nobody can say."""
    ours = [name for name, theirs in SYNONYMS.items() if argument in theirs or argument == name]
    written = next((name for name in ours if name in known), None)
    if written:
        return f"It is called `{written}` here" + (f", {AT_THE_START}." if argument in AT_THE_END else ".")
    if argument in ADVICE:
        return ADVICE[argument]
    if any(name in OF_CELLS for name in ours):
        name = next(name for name in ours if name in OF_CELLS)
        return f"It is `{name}` of a cell: write Recurrent(LSTMCell({name}=…), …)."
    if any(name in SIZES for name in ours):
        return SIZED
    near = get_close_matches(argument, known, n=1)
    return f"Did you mean `{near[0]}`?" if near else ""


def unknown(name: str, argument: str, known) -> TypeError:
    """The error about an argument that `name` does not have."""
    advice = hint(argument, known)
    return TypeError(f"{name}: arguments should be among {', '.join(known)}, got `{argument}`." + (f"\n{advice}" if advice else ""))


def check_arguments(name: str, positional: tuple, known: tuple, args: tuple, kwargs):
    """Every argument by name is `known`, and there are no more by position than `positional` names."""
    for argument in kwargs:
        if argument not in known:
            raise unknown(name, argument, known)
    if len(args) > len(positional):
        by_name = [argument for argument in known if argument not in positional]
        rule = f"should be given by name, all but {', '.join(positional)}" if positional else "should be given by name"
        advice = ""
        if by_name[:1] in (["h_0"], ["state"]):
            lengths = ", lengths=… for lengths" if "lengths" in known else ""
            advice = (
                f"\nWrite {by_name[0]}=… for a start state{lengths}. Did a Sequential pass on (output, h_n) of the layer before? "
                "Make that one with output_only=True: h_n of a layer is not the start of the next."
            )
        elif "w_ih_init" in known:
            advice = f"\n{SIZED}"
        raise TypeError(f"{name}: arguments {rule}, got {len(args)} by position.{advice}")


def checked(*, by_name: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Decorate a function whose wrong arguments are to be answered with the right ones, foreign names with ours.

    A method speaks in the name of its class. What has to be given by name and is not, comes as None: so the function's own check
    says what it should be. Arguments `by_name` are refused by position, whatever the function says.
    """

    def decorate(function: F) -> F:
        if _takes_any(function):
            return function
        method, positional, known = _arguments(function, by_name)
        names, most, own, call = frozenset(known), len(positional) + method, function.__name__, function
        wanted = _required_by_position(function, positional)
        least = len(wanted) + method
        if missing := _required_by_name(function):
            call = lambda *args, **kwargs: function(*args, **(missing | kwargs))

        @wraps(function)
        def checking(*args, **kwargs):
            if len(args) > most or not names.issuperset(kwargs) or len(args) < least:
                name = function.__qualname__ if method else own
                if method and args:
                    name = type(args[0]).__name__ + ("" if own in ("__init__", "__call__") else f".{own}")
                check_arguments(name, positional, known, args[method:], kwargs)
                _check_given(name, [argument for argument in wanted[len(args[method:]) :] if argument not in kwargs])
            return call(*args, **kwargs)

        return checking  # pyright: ignore[reportReturnType]  `wraps` makes it look like `function`

    return decorate


def checked_class(cls: type[T]) -> type[T]:
    """`checked` for the constructor of a class; of a Linen module, Flax would take `parent` and `name` right behind our sizes."""
    cls.__init__ = checked(by_name=("parent", "name"))(cls.__init__)
    return cls


def _takes_any(function) -> bool:
    """Whether a function says of itself that it takes arguments which it does not name, to hand them on."""
    return any(p.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL) for p in signature(function).parameters.values())


def _required_by_name(function) -> dict[str, None]:
    """The arguments that have to be given, and by name."""
    named = (p for p in signature(function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY)
    return {p.name: None for p in named if p.default is Parameter.empty}


def _required_by_position(function, positional: tuple) -> list[str]:
    """The arguments that have to be given, and may be by position."""
    return [name for name in positional if signature(function).parameters[name].default is Parameter.empty]


def _check_given(name: str, missing: list[str]):
    """No argument is `missing` that has to be given."""
    if missing:
        advice = f"\n{BOTH_SIZES}" if missing[0] in SIZES else ""
        raise TypeError(f"{name}: {', '.join(f'`{argument}`' for argument in missing)} should be given, got none.{advice}")


@lru_cache(maxsize=1024)
def _arguments(function, by_name: tuple = ()) -> tuple[bool, tuple, tuple]:
    """Whether there is a `self`; the names of the arguments that may go by position; those of all."""
    parameters = list(signature(function).parameters.values())
    method = bool(parameters) and parameters[0].name == "self"
    names = [p.name for p in parameters[method:]]
    named = {p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY} | set(by_name)
    positional = tuple(name for name in names if name not in named)
    return method, positional, (*positional, *(name for name in names if name in named))


def check_constructor(cls: type, args: tuple, kwargs):
    """The arguments of a class are those of its `__init__`, where that names all."""
    if kwargs or args:
        function = cls.__init__
        if _takes_any(function):
            return
        _, positional, known = _arguments(function)
        check_arguments(cls.__name__, positional, known, args, kwargs)
        for argument, value in zip(positional, args, strict=False):
            if type(value) is int and isinstance(signature(function).parameters[argument].default, str):
                raise TypeError(f"{cls.__name__}: `{argument}` should be a name, got {value}.\n{SIZED}")


class ClassSignature:
    """The `__signature__` of classes whose metaclass hides what `__init__` takes, as that of NNX does."""

    def __get__(self, instance, owner: type) -> Signature:
        if instance is not None:
            raise AttributeError("__signature__")  # an object has that of its `__call__`
        own = signature(owner.__init__)
        return own.replace(parameters=[p.replace(annotation=_plain(p.annotation)) for p in own.parameters.values()][1:])


def _plain(annotation):
    """The last of the types that a variable for types may be, which is the widest; else the annotation itself."""
    return annotation.__constraints__[-1] if isinstance(annotation, TypeVar) else annotation
