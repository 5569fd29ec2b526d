"""What a model of Keras does around its recurrent layers, as far as its configuration tells: what reads what, how often a layer is
called, masks and states that it is fed. A configuration may hold anything; what is not understood is not told."""

from collections.abc import Iterator
from typing import Any, NamedTuple

SILENT = ("Dropout", "SpatialDropout1D", "GaussianDropout", "GaussianNoise", "AlphaDropout", "ActivityRegularization", "Identity")
"""Layers that hand on what they read, but in training."""

MOST = 10_000  # layers on a way through a model
_FED = (None, "initial_state", "mask")  # what the arguments of a recurrent layer are, in their order
_FIRST = ("sequences", "sequence", "inputs")  # names of the first

Names = tuple[str, ...]  # outer, …, inner


class Output(NamedTuple):
    """An output of a layer; the input of the model itself if `name` is None."""

    name: str | None
    place: int


class Call(NamedTuple):
    """One call of a layer: the output that it reads as its sequence, if that is told, all that it reads, and what it is fed beside
    the sequence, by argument."""

    sequence: Output | None
    outputs: list[Output]
    fed: dict[str, list[Output]]


class Node(NamedTuple):
    """A layer of a model, and its calls, or None where they are not told."""

    kind: str
    config: dict[str, Any]
    calls: list[Call] | None


class Graph:
    """The layers of a model, by their names.

    Args:
        model: class_name and config as Keras writes them, or anything else.
    """

    def __init__(self, model: Any):
        self._models: dict[Names, dict[str, Node]] = {(): _nodes(model)}
        self._outputs: dict[Names, Output | None] = {(): None}

    @property
    def is_told(self) -> bool:
        """Whether there is anything known of the model."""
        return bool(self._models[()])

    def node(self, names: Names) -> Node | None:
        return self._inside(names[:-1]).get(names[-1])

    def _inside(self, names: Names) -> dict[str, Node]:
        """The layers of the model of this name."""
        if names not in self._models:
            node = self._inside(names[:-1]).get(names[-1])
            entry = {} if node is None else {"class_name": node.kind, "config": node.config}
            self._models[names], self._outputs[names] = _nodes(entry), _output(entry)
        return self._models[names]

    def calls(self, names: Names) -> int:
        """How often a layer is called in one call of the outermost model."""
        count = 1
        for k in range(len(names)):
            node = self.node(names[: k + 1])
            count *= len(node.calls) if node is not None and node.calls else 1
        return count

    def fed(self, names: Names) -> dict[str, list[Output]]:
        """What a layer is fed beside its sequence: "initial_state", "mask"; Keras 3 writes down the masks that reach it too."""
        node = self.node(names)
        return {} if node is None else {name: outputs for call in node.calls or () for name, outputs in call.fed.items()}

    def origin(self, names: Names) -> Names | str:
        """The layer whose output a layer reads, through those that only hand it on; or, in words, what else it reads."""
        for _ in range(MOST):
            node = self.node(names)
            if node is None or not node.calls or node.calls[0].sequence is None:
                return "something that the model does not tell"
            if len(node.calls) > 1:
                return f"{len(node.calls)} sequences in turn"
            output, outer = node.calls[0].sequence, names[:-1]
            if self._is_input(outer, output):
                if not outer:
                    return "an input of the model"
                names = outer
                continue
            while True:  # into the model that this is the output of
                if output is None or output.name is None:
                    return "something that the model does not tell"
                names = (*outer, output.name)
                if output.place:
                    return f"output {output.place} of {'/'.join(names)!r}"
                if not self._inside(names):
                    break
                outer, output = names, self._outputs[names]
            found = self.node(names)
            if found is None:
                return "something that the model does not tell"
            if found.kind == "InputLayer" and len(names) == 1:
                return "an input of the model"
            if found.kind not in SILENT:
                return names
        return "something that the model does not tell"

    def _is_input(self, outer: Names, output: Output) -> bool:
        """Whether it is the input of a model that has one."""
        if output.name is None:
            return True
        nodes = self._inside(outer)
        inputs = [name for name, node in nodes.items() if node.kind == "InputLayer"]
        return inputs == [output.name]

    def masks(self, names: Names) -> list[str]:
        """The layers that make a mask, of all from which something comes to this one."""
        found: dict[str, None] = {}
        waiting, seen = [names], {names}
        while waiting:
            names = waiting.pop()
            node = self.node(names)
            for output in [] if node is None else [output for call in node.calls or () for output in call.outputs]:
                is_input = output.name is None or self._kind((*names[:-1], output.name)) == "InputLayer"
                source = names[:-1] if is_input else (*names[:-1], str(output.name))
                if not source or source in seen or len(seen) > MOST:
                    continue
                seen.add(source)
                found |= dict.fromkeys("/".join(one) for one in self._masking(source)) if not is_input else {}
                if is_input or self._hands_mask_on(source):
                    waiting.append(source)
        return list(found)

    def _kind(self, names: Names) -> str | None:
        node = self.node(names)
        return None if node is None else node.kind

    def _masking(self, names: Names) -> Iterator[Names]:
        """The layers that make a mask: this one, or those in it if it is a model."""
        waiting = [names]
        while waiting:
            names = waiting.pop()
            node = self.node(names)
            if node is not None and (node.kind == "Masking" or (node.kind == "Embedding" and node.config.get("mask_zero"))):
                yield names
            waiting += [(*names, name) for name in self._inside(names)]

    def _hands_mask_on(self, names: Names) -> bool:
        """Not where a recurrent layer puts out its last step alone."""
        node = self.node(names)
        return node is None or every_step({"config": node.config}) is not False


def every_step(entry: Any) -> bool | None:
    """Whether a layer puts out every step of a sequence; None if it does not say."""
    config = entry.get("config") if isinstance(entry, dict) else None
    if isinstance(config, dict) and isinstance(config.get("layer"), dict):  # a wrapper says what its layer does
        config = config["layer"].get("config")
    told = config.get("return_sequences") if isinstance(config, dict) else None
    return told if isinstance(told, bool) else None


# Configurations --------------------------------------------------------------------------------------------------------


def _nodes(model: Any) -> dict[str, Node]:
    """The layers of a model, if it is one that tells how they are called."""
    layers, functional = _layers(model)
    found: dict[str, Node] = {}
    before = Output(None, 0)
    for layer in layers:
        kind, config = layer.get("class_name"), layer.get("config")
        name = _name(layer)
        if not isinstance(kind, str) or name is None or name in found:
            return {}
        calls = None
        if functional:
            nodes = layer.get("inbound_nodes")
            calls = [_call(node) for node in nodes] if isinstance(nodes, list | tuple) else None
        elif kind != "InputLayer":
            calls, before = [Call(before, [before], {})], Output(name, 0)
        found[name] = Node(kind, config if isinstance(config, dict) else {"layers": config}, calls)
    return found


def _layers(model: Any) -> tuple[list[dict], bool]:
    """The entries of the layers of a model, and whether each says what it reads."""
    config = model.get("config") if isinstance(model, dict) else None
    layers = config.get("layers") if isinstance(config, dict) else config  # Keras 2.2 and before: a list
    if not isinstance(layers, list | tuple) or not all(isinstance(layer, dict) for layer in layers):
        return [], False
    functional = bool(layers) and all("inbound_nodes" in layer for layer in layers)
    return (list(layers), functional) if functional or model.get("class_name") == "Sequential" else ([], False)


def _name(layer: dict) -> str | None:
    config = layer.get("config")
    given = (config.get("name") if isinstance(config, dict) else None, layer.get("name"))
    return next((name for name in given if isinstance(name, str)), None)


def _output(model: Any) -> Output | None:
    """The output of a model that has one."""
    layers, functional = _layers(model)
    if not functional:
        name = _name(layers[-1]) if layers else None
        return None if name is None else Output(name, 0)
    told = model["config"].get("output_layers") if isinstance(model["config"], dict) else None
    told = told[0] if isinstance(told, list | tuple) and len(told) == 1 else told
    return _listed(told)


def _listed(told: Any) -> Output | None:
    """What Keras writes as [name, call, output, …]."""
    if isinstance(told, list | tuple) and len(told) >= 3 and isinstance(told[0], str) and type(told[2]) is int:
        return Output(told[0], told[2])
    return None


def _call(node: Any) -> Call:
    if isinstance(node, dict):  # Keras 3: the arguments, in which outputs stand for arrays
        args, kwargs = node.get("args"), node.get("kwargs")
        args, kwargs = args if isinstance(args, list | tuple) else (), kwargs if isinstance(kwargs, dict) else {}
        told = [(_FED[k] if k < len(_FED) else None, value) for k, value in enumerate(args)] + list(kwargs.items())
        several = [(name, list(_outputs(value))) for name, value in told]
        named = {name: found for name, found in several if name in _FIRST}
        sequence = several[0][1] if args else next(iter(named.values()), [])
    else:  # Keras 2: a list of outputs, of which those after the first are states; the last entry of each are arguments
        entries = node if isinstance(node, list | tuple) else []
        first = [output for output in map(_listed, entries) if output is not None]
        several = [(None, first[:1]), ("initial_state", first[1:])]
        for entry in entries:
            named = entry[3] if isinstance(entry, list | tuple) and len(entry) > 3 and isinstance(entry[3], dict) else {}
            several += [(name, list(_outputs(value))) for name, value in named.items()]
        sequence = first[:1]
    outputs = [output for _, found in several for output in found]
    fed = {name: found for name, found in several if name in _FED[1:] and found}
    return Call(sequence[0] if len(sequence) == 1 else None, outputs, fed)


def _outputs(value: Any) -> Iterator[Output]:
    """The outputs of layers in an argument."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        found = _listed(one)
        if isinstance(one, dict):
            if one.get("class_name") == "__keras_tensor__":
                config = one.get("config")
                found = _listed(config.get("keras_history")) if isinstance(config, dict) else None
            else:
                waiting += one.values()
        elif isinstance(one, list | tuple) and found is None:
            waiting += one
        if found is not None:
            yield found
