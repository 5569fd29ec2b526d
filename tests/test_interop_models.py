"""Whole models of PyTorch in one call, weights that PyTorch computes, lists of layers; writers, which export no call but ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.interop import _checks, from_safetensors, from_torch, load_safetensors, load_torch, to_onnx, to_safetensors, to_torch

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytest.importorskip("torch.nn.utils.prune")
tnn, utils = torch.nn, torch.nn.utils

BATCH, TIME, WORDS, WIDTH, HIDDEN, TAGS = 3, 6, 11, 4, 5, 2


@pytest.fixture(autouse=True)
def seed():
    """What a test draws does not depend on the tests before it; some spectral norms make weights of 60."""
    torch.manual_seed(0)


def close(got, want, tolerance=1e-5):
    want = want.detach().numpy()
    assert got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got), want, rtol=tolerance, atol=tolerance)


def bits(module):
    return [np.asarray(a).tobytes() for a in jax.tree.leaves(nnx.state(module, nnx.Param))]


def shaken(module):
    """All parameters random, so that no LayerNorm is the identity and no bias zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) / 2)
    return module


# The usual models ---------------------------------------------------------------------------------


class TorchTagger(tnn.Module):
    """Words to tags."""

    def __init__(self):
        super().__init__()
        self.embed = tnn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.norm = tnn.LayerNorm(WIDTH)
        self.rnn = tnn.LSTM(WIDTH, HIDDEN, 2, bidirectional=True, batch_first=True)
        self.heads = tnn.ModuleList([tnn.Linear(2 * HIDDEN, TAGS), tnn.Linear(2 * HIDDEN, 3, bias=False)])
        self.transitions = tnn.Parameter(torch.ones(TAGS, TAGS))

    def forward(self, words):
        output, _ = self.rnn(self.norm(self.embed(words)))
        tags, others = (head(output) for head in self.heads)
        return tags @ self.transitions, others


class Tagger(nnx.Module):
    def __init__(self, rngs, *, epsilon=1e-5, tags=TAGS, batch_first=True, heads=2):
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon, rngs=rngs)
        self.rnn = jaxrnn.LSTM(WIDTH, HIDDEN, 2, bidirectional=True, batch_first=batch_first, rngs=rngs)
        heads = [nnx.Linear(2 * HIDDEN, tags, rngs=rngs), nnx.Linear(2 * HIDDEN, 3, use_bias=False, rngs=rngs)][:heads]
        self.heads = nnx.List(heads)
        self.transitions = nnx.Param(jnp.zeros((TAGS, TAGS)))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, words):
        output, _ = self.rnn(self.norm(self.embed(words)))
        tags, others = (head(output) for head in self.heads)
        return tags @ self.transitions, others


class TorchClassifier(tnn.Module):
    """Words to a class; a cell, a Sequential, and another name for the layer."""

    def __init__(self):
        super().__init__()
        self.words = tnn.ModuleDict({"embed": tnn.Embedding(WORDS, WIDTH)})
        self.encoder = tnn.GRUCell(WIDTH, HIDDEN)
        self.head = tnn.Sequential(tnn.LayerNorm(HIDDEN, eps=1e-3), tnn.ReLU(), tnn.Linear(HIDDEN, TAGS))

    def forward(self, words):
        x, h = self.words["embed"](words), None
        for t in range(x.shape[1]):
            h = self.encoder(x[:, t], h)
        return self.head(h)


class Classifier(nnx.Module):
    def __init__(self, rngs, epsilon=1e-3):
        self.words = nnx.Dict(embed=nnx.Embed(WORDS, WIDTH, rngs=rngs))
        self.encoder = jaxrnn.GRU(WIDTH, HIDDEN, rngs=rngs)
        norm = nnx.LayerNorm(HIDDEN, epsilon=epsilon, rngs=rngs)
        self.head = nnx.Sequential(norm, nnx.relu, nnx.Linear(HIDDEN, TAGS, rngs=rngs))

    def __call__(self, words):
        return self.head(self.encoder(self.words["embed"](words))[1][-1])


WORDS_IN = np.random.default_rng(0).integers(0, WORDS, (BATCH, TIME))


@pytest.mark.slow
def test_a_tagger_comes_over_in_one_call_and_goes_back():
    theirs = shaken(TorchTagger())
    for source in (theirs, theirs.state_dict(), {key: a.numpy() for key, a in theirs.state_dict().items()}):
        ours = Tagger(nnx.Rngs(0))
        load_torch(ours, source)
        for got, want in zip(nnx.jit(lambda ours: ours(WORDS_IN))(ours), theirs(torch.tensor(WORDS_IN)), strict=True):
            close(got, want)
    back = to_torch(ours, target=TorchTagger())
    assert list(back) == list(theirs.state_dict())
    assert all(torch.equal(a, back[key]) for key, a in theirs.state_dict().items())
    other = TorchTagger()
    other.load_state_dict(back, strict=True)
    assert torch.equal(other(torch.tensor(WORDS_IN))[0], theirs(torch.tensor(WORDS_IN))[0])


def test_a_classifier_with_a_cell_a_dict_and_a_sequential_comes_over_and_goes_back(tmp_path):
    theirs = shaken(TorchClassifier())
    ours = Classifier(nnx.Rngs(0))
    load_torch(ours, theirs)
    close(nnx.jit(lambda ours: ours(WORDS_IN))(ours), theirs(torch.tensor(WORDS_IN)))
    back = to_torch(ours, target=theirs)
    assert all(torch.equal(a, back[key]) for key, a in theirs.state_dict().items())
    safetensors_torch.save_file(theirs.state_dict(), tmp_path / "file")
    with pytest.raises(ValueError, match=r"`epsilon` of `head.0` should be 1e-05, .* does not hold it, got 0.001"):
        load_safetensors(ours, tmp_path / "file")
    load_safetensors(usual := Classifier(nnx.Rngs(1), epsilon=1e-5), tmp_path / "file")
    assert bits(usual) == bits(ours)


def test_a_part_of_a_model_is_named_by_the_prefix():
    theirs = tnn.ModuleDict({"outer": shaken(TorchTagger()), "more": tnn.Conv1d(2, 2, 1)})
    ours, other = Tagger(nnx.Rngs(0)), Tagger(nnx.Rngs(1))
    load_torch(ours, theirs, "outer")
    load_torch(other, theirs.state_dict(), "outer.")
    assert bits(ours) == bits(other)
    back = to_torch(ours, "outer", target=theirs)
    assert set(back) == {key for key in theirs.state_dict() if key.startswith("outer.")}
    with pytest.raises(ValueError, match=r"more.weight should be float32 \(2, 2, 1\), got none"):
        to_torch(tree := nnx.Dict(outer=ours), target=theirs)
    with pytest.raises(ValueError, match=r"more.bias should not be there, got float32 \(2,\)"):
        load_torch(tree, theirs)


class Renamed(nnx.Module):
    """Two recurrent layers and a head, under names that the caller chooses."""

    def __init__(self, rnn="rnn", second="second", fc="fc", size=HIDDEN, **options):
        setattr(self, rnn, jaxrnn.LSTM(WIDTH, HIDDEN, rngs=nnx.Rngs(0), **options))
        setattr(self, second, jaxrnn.GRU(HIDDEN, size, rngs=nnx.Rngs(1)))
        setattr(self, fc, nnx.Linear(size, TAGS, rngs=nnx.Rngs(2)))


class TorchNamed(tnn.Module):
    def __init__(self, lstm=None):
        super().__init__()
        self.lstm = lstm or tnn.LSTM(WIDTH, HIDDEN, batch_first=True)
        self.second, self.head = tnn.GRU(HIDDEN, HIDDEN, batch_first=True), tnn.Linear(HIDDEN, TAGS)


ASKED = "\nAre they the same arrays under other names, {}? Then rename the keys of the state_dict."


def test_the_same_arrays_under_other_names_are_noticed():
    theirs, ours = shaken(TorchNamed()), Renamed()
    for source in (theirs, theirs.state_dict()):
        with pytest.raises(ValueError, match=r"lstm\.weight_ih_l0 should not be there") as error:
            load_torch(ours, source)
        above_the_list = str(error.value).split("\n  ")[0]
        assert above_the_list.endswith(ASKED.format("'lstm.' -> 'rnn.', 'head.' -> 'fc.'"))
    state = {key.replace("lstm.", "rnn.").replace("head.", "fc."): a for key, a in theirs.state_dict().items()}
    load_torch(ours, state)
    np.testing.assert_array_equal(ours.fc.kernel.get_value().T, theirs.head.weight.detach())

    nested = {f"model.body.{key}" if "lstm" in key else f"model.{key}": a for key, a in theirs.state_dict().items()}
    cells = TorchNamed(tnn.LSTMCell(WIDTH, HIDDEN)).state_dict()
    for state, prefix, pairs in (
        (nested, "model.", "'model.body.lstm.' -> 'model.rnn.', 'model.head.' -> 'model.fc.'"),  # by layer
        (cells, "", "'lstm.' -> 'rnn.', 'head.' -> 'fc.'"),
    ):
        with pytest.raises(ValueError) as error:
            load_torch(ours, state, prefix)
        assert f"{ASKED.format(pairs)}\n  " in str(error.value)


def test_what_is_called_alike_on_both_sides_stays_where_it_is():
    """Of two layers of the same shapes."""
    ours = Renamed()
    ours.rnn = jaxrnn.GRU(HIDDEN, HIDDEN, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"under other names, 'lstm\.' -> 'rnn\.', 'head\.' -> 'fc\.'") as error:
        load_torch(ours, TorchNamed(tnn.GRU(HIDDEN, HIDDEN)).state_dict())
    assert "second" not in str(error.value)


def test_other_names_are_not_guessed():
    """Two layers of the same shapes, another shape, and arrays too few or too many."""
    alike = TorchNamed(tnn.GRU(HIDDEN, HIDDEN)).state_dict()
    twice = Renamed("a", "b")
    twice.a = jaxrnn.GRU(HIDDEN, HIDDEN, rngs=nnx.Rngs(0))
    state = TorchNamed().state_dict()
    for ours, source in (
        (twice, alike),
        (Renamed(size=HIDDEN + 1), state),
        (Renamed(bias=False), state),
        (Renamed(), {key: a for key, a in state.items() if key != "head.bias"}),
        (Renamed(), {key: a for key, a in state.items() if "head" not in key}),
        (Renamed(), state | {"more": torch.zeros(3)}),
    ):
        with pytest.raises(ValueError, match="should hold the arrays of the module") as error:
            load_torch(ours, source)
        assert "under other names" not in str(error.value)


def test_what_is_left_over_on_either_side_is_listed_and_nothing_is_filled():
    theirs = shaken(TorchTagger())
    ours = Tagger(nnx.Rngs(0), heads=1, tags=7)
    ours.bonus = nnx.Param(jnp.ones(3))
    before = bits(ours)
    message = (
        r"(?s)^load_torch: `source` should hold the arrays of the module.*bonus should be float32 \(3,\), got none.*"
        r"heads.1.weight should not be there, got float32 \(3, 10\).*heads.0.weight should be float32 \(7, 10\), got float32 \(2"
    )
    for source in (theirs, theirs.state_dict()):
        with pytest.raises(ValueError, match=message):
            load_torch(ours, source)
    assert bits(ours) == before
    message = (
        r"(?s)^to_torch: .*heads.1.weight should be float32 \(3, 10\), got none.*bonus should not be there, got float32 \(3,\)"
    )
    with pytest.raises(ValueError, match=message):
        to_torch(ours, target=theirs)


def make(kind, **options):
    return lambda: kind(nnx.Rngs(0), **options)


def changed(change, model=TorchTagger):
    theirs = shaken(model())
    change(theirs)
    return theirs


class Doubled(tnn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnEmbed(nnx.Embed):
    def __call__(self, x):
        return 2 * super().__call__(x)


def with_own_embed():
    ours = Tagger(nnx.Rngs(0))
    ours.embed = OwnEmbed(WORDS, WIDTH, rngs=nnx.Rngs(0))
    return ours


def with_conv():
    ours = Tagger(nnx.Rngs(0))
    ours.conv = nnx.Conv(2, 2, (3,), rngs=nnx.Rngs(0))
    return ours


OTHER_MODELS = {
    "epsilon": (make(Tagger, epsilon=1e-6), TorchTagger, ValueError, r"`epsilon` of `norm` should be 1e-05, .*, got 1e-06"),
    "layout": (make(Tagger, batch_first=False), TorchTagger, ValueError, r"`batch_first` of `rnn` should be True,.*got False"),
    "nonlinearity": (
        lambda: jaxrnn.RNN(2, 3, batch_first=False, rngs=nnx.Rngs(0)),
        lambda: tnn.RNN(2, 3, nonlinearity="relu"),
        ValueError,
        r"`nonlinearity` of `source` should be 'relu', as in `source`, got 'tanh'",
    ),
    "kind": (
        make(Tagger),
        lambda: changed(lambda m: setattr(m, "rnn", tnn.GRU(WIDTH, HIDDEN, 2, bidirectional=True))),
        TypeError,
        r"`rnn` of `source` should be a torch.nn.LSTM or torch.nn.LSTMCell, as it is in `module`, got GRU",
    ),
    "norm": (
        make(Tagger),
        lambda: changed(lambda m: setattr(m, "norm", tnn.RMSNorm(WIDTH))),
        TypeError,
        r"`norm` of `source` should be a torch.nn.LayerNorm.*got RMSNorm",
    ),
    "forward": (
        make(Tagger),
        lambda: changed(lambda m: setattr(m.heads, "0", Doubled(2 * HIDDEN, TAGS))),
        TypeError,
        r"`heads.0` should have the forward of torch.nn.Linear, got Doubled with its own",
    ),
    "max_norm": (
        make(Tagger),
        lambda: changed(lambda m: setattr(m.embed, "max_norm", 1.0)),
        ValueError,
        r"`max_norm` of `embed` should be 1.0, as in `source`, got None",
    ),
    "quantized": (
        make(Tagger),
        lambda: torch.ao.quantization.quantize_dynamic(TorchTagger(), {tnn.LSTM}),
        TypeError,
        r"(?s)`rnn` of `source` should be .*got a quantized LSTM.*before quantization",
    ),
    "our call": (with_own_embed, TorchTagger, TypeError, r"`embed` should be an nnx.Embed, got OwnEmbed"),
    "our layer": (with_conv, TorchTagger, ValueError, r"conv.kernel should be float32 \(3, 2, 2\), got none"),
    "no layer": (
        lambda: nnx.Dropout(0.1, rngs=nnx.Rngs(0)),
        TorchTagger,
        TypeError,
        r"or an nnx.Module with layers .* got Dropout",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", OTHER_MODELS)
def test_a_model_that_computes_something_else_is_refused(case):
    make_ours, make_theirs, kind, message = OTHER_MODELS[case]
    ours, theirs = make_ours(), make_theirs()
    before = bits(ours)
    with pytest.raises(kind, match=message):
        load_torch(ours, theirs)
    assert bits(ours) == before


FUNCTIONS = {
    "Linear": (nnx.Linear, (3, 3), ["promote_dtype", "dot_general", "preferred_element_type"]),
    "Embed": (nnx.Embed, (3, 3), ["promote_dtype"]),
    "LayerNorm": (nnx.LayerNorm, (3,), ["promote_dtype", "reduction_axes", "feature_axes", "axis_name", "axis_index_groups"]),
}
OTHER_FUNCTIONS = {"reduction_axes": (-2, -1), "feature_axes": (-2, -1), "axis_name": "data", "axis_index_groups": [[0]]}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_layer_that_computes_with_another_function_is_refused_by_its_name(kind):
    """Every one that Flax lets one choose and that PyTorch does not have."""
    make_layer, sizes, options = FUNCTIONS[kind]
    layers = {nnx.Linear: tnn.Linear, nnx.Embed: tnn.Embedding, nnx.LayerNorm: tnn.LayerNorm}
    theirs = layers[make_layer](*sizes)
    load_torch(make_layer(*sizes, **{"epsilon": 1e-5} if kind == "LayerNorm" else {}, rngs=nnx.Rngs(0)), theirs)
    for option in options:
        layer = make_layer(*sizes, **{"epsilon": 1e-5} if kind == "LayerNorm" else {}, rngs=nnx.Rngs(0))
        setattr(layer, option, OTHER_FUNCTIONS.get(option, lambda *args, **more: 0))
        with pytest.raises(
            ValueError, match=rf"^load_torch: `{option}` of `module` should be the default of nnx.{kind}, got another"
        ):
            load_torch(layer, theirs)


def test_what_a_flax_does_not_let_one_choose_is_no_error():
    """`LayerNorm` has had `promote_dtype` since Flax 0.12.1: a layer without it can have no other."""

    class Older(nnx.Module):
        def __init__(self, dot_general=max):
            self.dot_general = dot_general

    _checks.check_dense("caller", "fc", Older(), Older, "promote_dtype", "dot_general")
    with pytest.raises(ValueError, match=r"caller: `dot_general` of `fc` should be the default of nnx.Older, got another"):
        _checks.check_dense("caller", "fc", Older(min), Older, "promote_dtype", "dot_general")


def test_one_parameter_under_two_names_must_be_one_there_too():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = self.b = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    theirs = tnn.ModuleDict({"a": tnn.Linear(3, 3), "b": tnn.Linear(3, 3)})
    ours = Tied()
    with pytest.raises(
        ValueError, match=r"a.weight and b.weight of `source` should be equal, as one parameter of the module, got two"
    ):
        load_torch(ours, theirs)
    theirs["b"].load_state_dict(theirs["a"].state_dict())
    load_torch(ours, theirs)
    np.testing.assert_array_equal(ours.b.kernel.get_value(), theirs["a"].weight.detach().numpy().T)


def test_a_weight_that_pytorch_ties_to_another_is_named_as_such():
    """A language model whose head is its embedding: our module has the one, and attends to it."""

    class Ours(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(7, 3, rngs=nnx.Rngs(0))

    theirs = tnn.ModuleDict({"embed": tnn.Embedding(7, 3), "out": tnn.Linear(3, 7, bias=False)})
    with pytest.raises(ValueError, match=r"out.weight should not be there, got float32 \(7, 3\)$"):
        load_torch(Ours(), theirs)
    theirs["out"].weight = theirs["embed"].weight
    hint = r"Does `module` tie the two\? Then pass the state_dict without out.weight.\n  "
    with pytest.raises(ValueError, match=rf"\nout.weight holds the numbers of embed.weight. {hint}"):
        load_torch(Ours(), theirs)
    ours, state = Ours(), theirs.state_dict()
    del state["out.weight"]
    load_torch(ours, state)
    np.testing.assert_array_equal(ours.embed.embedding.get_value(), theirs["embed"].weight.detach().numpy())


# Weights that PyTorch computes --------------------------------------------------------------------

COMPUTED = {
    "weight_norm": lambda m, name: utils.parametrizations.weight_norm(m, name),
    "spectral_norm": lambda m, name: utils.parametrizations.spectral_norm(m, name),
    "orthogonal": lambda m, name: utils.parametrizations.orthogonal(m, name),
    "old weight_norm": lambda m, name: utils.weight_norm(m, name),
    "old spectral_norm": lambda m, name: utils.spectral_norm(m, name),
    "prune": lambda m, name: utils.prune.random_unstructured(m, name, 0.5),
    "pruned twice": lambda m, name: utils.prune.l1_unstructured(utils.prune.random_unstructured(m, name, 0.3), name, 0.3),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", COMPUTED)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_computed_weight_of_a_live_module_is_read_as_it_computes(kind, case):
    """Also after a step of training, when what old hooks have left in the module is stale; and the module stays as it is."""
    theirs = shaken(getattr(tnn, kind)(WIDTH, HIDDEN, batch_first=True))
    COMPUTED[case](theirs, "weight_hh_l0")
    COMPUTED[case](theirs, "weight_ih_l0")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    state = {key: a.clone() for key, a in theirs.state_dict().items()}
    ours = from_torch(theirs)
    assert all(torch.equal(a, state[key]) for key, a in theirs.state_dict().items())
    x = np.random.default_rng(0).standard_normal((BATCH, TIME, WIDTH)).astype("float32")
    close(nnx.jit(lambda ours: ours(x))(ours)[0], theirs.eval()(torch.tensor(x))[0])


CAUSES = {
    "weight_norm": r"(?s)weight_hh_l0 is parametrized: .*parametrizations.weight_hh_l0.original0.*Pass the module itself, .*"
    r"torch.nn.utils.parametrize.remove_parametrizations\(module, 'weight_hh_l0'\)",
    "spectral_norm": r"remove_parametrizations\(module, 'weight_hh_l0'\)",
    "orthogonal": r"remove_parametrizations\(module, 'weight_hh_l0'\)",
    "old weight_norm": r"torch.nn.utils.remove_weight_norm\(module, 'weight_hh_l0'\)",
    "old spectral_norm": r"torch.nn.utils.remove_spectral_norm\(module, 'weight_hh_l0'\)",
    "prune": r"torch.nn.utils.prune.remove\(module, 'weight_hh_l0'\)",
    "pruned twice": r"torch.nn.utils.prune.remove\(module, 'weight_hh_l0'\)",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", COMPUTED)
def test_a_state_dict_of_computed_weights_is_refused_with_the_way_on(case):
    theirs = tnn.ModuleDict({"rnn": tnn.GRU(WIDTH, HIDDEN)})
    COMPUTED[case](theirs["rnn"], "weight_hh_l0")
    with pytest.raises(ValueError, match=CAUSES[case]):
        from_torch(theirs.state_dict(), "rnn")
    ours = nnx.Dict(rnn=jaxrnn.GRU(WIDTH, HIDDEN, batch_first=False, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=CAUSES[case]):
        load_torch(ours, theirs.state_dict())
    load_torch(ours, theirs.eval())
    theirs["rnn"](torch.zeros(1, 1, WIDTH))  # old hooks compute the weight here
    np.testing.assert_allclose(to_torch(ours["rnn"])["weight_hh_l0"], theirs["rnn"].weight_hh_l0.detach(), atol=1e-6)
    with pytest.raises(ValueError, match=r"weight_hh_l0 is parametrized: .*First call .*weight_hh_l0"):
        to_torch(ours, target=theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_other_layers_with_computed_weights_come_over_too():
    theirs = shaken(TorchTagger())
    utils.parametrizations.weight_norm(theirs.heads[0])
    utils.prune.l1_unstructured(theirs.embed, "weight", 0.4)
    utils.weight_norm(theirs.heads[1])
    load_torch(ours := Tagger(nnx.Rngs(0)), theirs)
    close(ours(WORDS_IN)[0], theirs(torch.tensor(WORDS_IN))[0])


def test_a_weight_computed_by_something_unknown_is_refused():
    theirs = tnn.LSTM(2, 3)
    raw = theirs.weight_hh_l0
    del theirs._parameters["weight_hh_l0"]
    theirs.weight_hh_l0 = raw * 0.5
    with pytest.raises(
        ValueError, match=r"weight_hh_l0 should be a parameter, parametrized, .* got one computed by something else"
    ):
        from_torch(theirs)


# Lists, checkpoints, dtypes, paths ----------------------------------------------------------------


@pytest.mark.parametrize("container", [list, tuple, tnn.ModuleList, lambda layers: tnn.Sequential(*layers)])
def test_a_list_of_layers_is_a_stack(container):
    layers = [shaken(tnn.GRU(s, h, batch_first=True, bidirectional=True)) for s, h in ((WIDTH, 5), (10, 3))]
    ours = from_torch(container(layers))
    assert (ours.stack.hidden_size, ours.stack.num_layers, ours.batch_first) == ((5, 3), 2, True)
    x = torch.randn(BATCH, TIME, WIDTH)
    first, h_0 = layers[0](x)
    second, h_1 = layers[1](first)
    output, h_n = nnx.jit(lambda ours: ours(x.numpy()))(ours)
    close(output, second)
    for got, want in zip(h_n, (h_0, h_1), strict=True):
        close(jnp.stack(jax.tree.leaves(got)), want)


def test_a_list_of_cells_is_a_stack_and_may_stand_inside():
    model = tnn.ModuleDict({"cells": tnn.ModuleList([shaken(tnn.LSTMCell(WIDTH, 5)), shaken(tnn.LSTMCell(5, 5))])}).eval()
    ours = from_torch(model, "cells")
    assert ours.deterministic
    x = torch.randn(BATCH, TIME, WIDTH)
    states = [(torch.zeros(BATCH, 5), torch.zeros(BATCH, 5))] * 2
    for t in range(TIME):
        states[0] = model["cells"][0](x[:, t], states[0])
        states[1] = model["cells"][1](states[0][0], states[1])
    _, (h_n, c_n) = ours(x.numpy())
    close(h_n, torch.stack([h for h, _ in states]))
    close(c_n, torch.stack([c for _, c in states]))


def gru(*sizes, **options):
    return tnn.GRU(*sizes, **options)


BAD_LISTS = {
    "between": (
        lambda: tnn.Sequential(gru(2, 3), tnn.Linear(3, 3)),
        TypeError,
        r"`source` should hold torch.nn.RNN, .*got GRU, Linear.\nPass a list of the recurrent ones alone\?",
    ),
    "empty": (lambda: [], TypeError, r"`source` should hold .*got nothing"),
    "kinds": (lambda: [gru(2, 3), tnn.LSTM(3, 3)], ValueError, r"should have the same kind, got \[GRUCell\(\), LSTMCell\(\)\]"),
    "layout": (
        lambda: [gru(2, 3), gru(3, 3, batch_first=True)],
        ValueError,
        r"should have the same batch_first, got \[False, True\]",
    ),
    "directions": (
        lambda: [gru(2, 3), gru(3, 3, bidirectional=True)],
        ValueError,
        r"as many directions as the first, got \[1, 2\]",
    ),
    "widths": (lambda: [gru(2, 3), gru(4, 3)], ValueError, r"params\[1\]\[0\].w_ih should be float32 \(3, 3, 3\), got float32 \(4"),
    "dropout": (lambda: [gru(2, 3, 2, dropout=0.5), gru(3, 3)], ValueError, r"`dropout` should be given, since it stands within"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_list_that_is_no_stack_is_refused(case):
    make_list, kind, message = BAD_LISTS[case]
    with pytest.raises(kind, match=message):
        from_torch(make_list())


@pytest.mark.slow
def test_a_checkpoint_is_answered_with_the_way_to_its_state_dict():
    theirs = tnn.GRU(2, 3)
    optimizer = torch.optim.Adam(theirs.parameters()).state_dict()
    ours = jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0))
    for checkpoint, way in (
        ({"model_state": theirs.state_dict(), "epoch": 3, "optimizer": optimizer}, r"Pass source\['model_state'\]\?$"),
        ({"state_dict": theirs.state_dict(), "loss": torch.tensor(0.1)}, r"Pass source\['state_dict'\]\?$"),
        ({"a": {"b": theirs.state_dict()}}, r"Pass source\['a'\]\['b'\]\?$"),
        ({"model": theirs, "args": {"lr": 0.1}}, r"Pass source\['model'\].state_dict\(\)\?$"),
        ({"net": theirs.state_dict(), "ema": theirs.state_dict()}, r"Pass source\['net'\] or source\['ema'\]\?$"),
    ):
        for call in (from_torch, lambda source: load_torch(ours, source)):
            with pytest.raises(ValueError, match=r"`source` should be a state_dict, got a dict of '.*\n" + way):
                call(checkpoint)
    assert bits(from_torch({"epoch": 3, "a": theirs.state_dict()}["a"])) == bits(from_torch(theirs.state_dict()))


def test_a_path_is_answered_with_the_call_that_reads_it(tmp_path):
    for call in (from_torch, lambda source: load_torch(jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0)), source)):
        with pytest.raises(TypeError, match=r"got a path, 'x.ckpt'.\nPass torch.load\('x.ckpt', weights_only=True\)\?"):
            call("x.ckpt")
        with pytest.raises(TypeError, match=r"torch.load\('.*model.pt', weights_only=True\)"):
            call(tmp_path / "model.pt")
    with pytest.raises(TypeError, match=r"Pass from_safetensors, which reads the file\?"):
        from_torch("x.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_converted_on_request(dtype, tmp_path):
    theirs = tnn.LSTM(2, 3, num_layers=2, dtype=dtype)
    want = {key: a.float() for key, a in theirs.state_dict().items()}
    safetensors_torch.save_file(theirs.state_dict(), tmp_path / "file")
    for ours in (
        from_torch(theirs.state_dict(), param_dtype=jnp.float32),
        from_torch(theirs, param_dtype="float32"),
        from_torch([theirs], param_dtype=np.float32),
        from_safetensors(tmp_path / "file", param_dtype=jnp.float32),
    ):
        got = to_torch(ours)
        assert all(torch.equal(got[key], a) for key, a in want.items())


def test_a_conversion_that_would_lose_numbers_is_refused():
    found = {key: 1e5 * a for key, a in tnn.GRU(2, 3).state_dict().items()}
    found["weight_ih_l0"][0, 0] = 9e4
    with pytest.raises(ValueError, match=r"weight_ih_l0 of `source` should fit float16, got entries up to 9e\+04"):
        from_torch(found, param_dtype=jnp.float16)
    with pytest.raises(TypeError, match=r"`param_dtype` should be one of float64, float32, float16, bfloat16, got int8"):
        from_torch(found, param_dtype="int8")
    with pytest.raises(TypeError, match=r"should not be float64 while"):
        from_torch(found, param_dtype="float64")
    eight = {key: a.to(torch.int8) for key, a in tnn.GRU(2, 3).state_dict().items()}
    with pytest.raises(TypeError, match=r"`weight_ih_l0` of `source` should have one of the dtypes .*got int8"):
        from_torch(eight, param_dtype=jnp.float32)


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_layer_is_named():
    theirs = torch.ao.quantization.quantize_dynamic(tnn.Sequential(tnn.LSTM(2, 3)), {tnn.LSTM})
    with pytest.raises(TypeError, match=r"a quantized LSTM, whose weights are rounded.\nPass the module from before quantization"):
        from_torch(theirs[0])
    with pytest.raises(TypeError, match=r"got a quantized LSTM.\nPass the modules from before quantization"):
        from_torch(theirs)
    with pytest.raises(TypeError, match=r"got Holder, quantized at `.0`.*\nPass the module from before"):
        from_torch(holder(theirs[0]))
    with pytest.raises(ValueError, match=r"belongs to a quantized layer, which holds integers. Pass the state_dict from before"):
        from_torch(theirs.state_dict(), "0")
    with pytest.raises(TypeError, match=r"a quantized LSTMCell, whose weights are rounded"):
        from_torch(torch.ao.nn.quantized.dynamic.LSTMCell(2, 3))


def holder(layer):
    class Holder(tnn.Module):
        pass

    made = Holder()
    made.add_module("0", layer)
    return made


@pytest.mark.filterwarnings("ignore")
def test_what_holds_no_numbers_is_named():
    ours = jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0))
    state = tnn.GRU(2, 3).state_dict()
    with pytest.raises(TypeError, match=r"`bias_ih_l0` of `source` should have .*got meta float32"):
        load_torch(ours, state | {"bias_ih_l0": torch.empty(9, device="meta")})
    with pytest.raises(TypeError, match=r"`weight_ih_l0` of `source` should have .*got sparse_coo float32"):
        load_torch(ours, state | {"weight_ih_l0": state["weight_ih_l0"].to_sparse()})
    with pytest.raises(TypeError, match=r"`bias_hh_l0` of `source` should have .*got str"):
        load_torch(ours, state | {"bias_hh_l0": "none"})
    with pytest.raises(TypeError, match=r"got a RecursiveScriptModule.\nPass its .state_dict\(\)"):
        from_torch(torch.jit.script(tnn.Sequential(tnn.Linear(2, 3))))
    with pytest.raises(ValueError, match=r"`nonlinearity` should be left out, since `source` holds a GRU"):
        from_torch(state, nonlinearity="relu")


# Writers ------------------------------------------------------------------------------------------


class Foreign(nnx.Module):
    """It has what a model of ours has, and computes something else."""

    def __init__(self):
        self.rnn = jaxrnn.GRU(2, 2, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(2, 2, rngs=nnx.Rngs(0))


class Residual(Foreign):
    def __call__(self, x):
        return x[:, -1] + self.fc(self.rnn(x)[1][-1])


class Activated(Foreign):
    def __call__(self, x):
        return self.fc(nnx.relu(self.rnn(x)[1][-1]))


class EveryStep(Foreign):
    def __call__(self, x):
        return self.fc(self.rnn(x)[0])


class OwnCall(jaxrnn.models.GRUModel):
    def __call__(self, x):
        return -super().__call__(x)


class OwnArrays(jaxrnn.GRU):
    def _arrays(self, variables):
        return jax.tree.map(lambda a: 2 * a, super()._arrays(variables))


class OwnParams(jaxrnn.GRU):
    @property
    def params(self):
        return self.kept

    @params.setter
    def params(self, value):
        self.kept = nnx.data(value)


def patched():
    module = jaxrnn.GRU(2, 2, rngs=nnx.Rngs(0))
    module._arrays = lambda variables: None
    return module


def other_head(**options):
    model = jaxrnn.models.GRUModel(2, 2, 2, rngs=nnx.Rngs(0))
    model.fc = nnx.Linear(2, 2, rngs=nnx.Rngs(0), **options)
    return model


def replaced(**parts):
    model = jaxrnn.models.GRUModel(2, 2, 2, rngs=nnx.Rngs(0))
    for name, part in parts.items():
        setattr(model, name, part)
    return model


NOT_OURS = {
    "residual": (Residual, r"got Residual.\nPass its `.rnn`"),
    "activated": (Activated, r"got Activated.\nPass its `.rnn`"),
    "every step": (EveryStep, r"got EveryStep.\nPass its `.rnn`"),
    "tagger": (make(Tagger), r"got Tagger.\nPass its `.rnn`"),
    "own call": (lambda: OwnCall(2, 2, 2, rngs=nnx.Rngs(0)), r"got OwnCall, which has its own __call__.\nPass its `.rnn`"),
    "what a call calls": (lambda: OwnArrays(2, 2, rngs=nnx.Rngs(0)), r"got OwnArrays, which has its own _arrays"),
    "what a call reads": (lambda: OwnParams(2, 2, rngs=nnx.Rngs(0)), r"got OwnParams, which has its own params"),
    "a patched object": (patched, r"got GRU, which has its own _arrays"),
    "another head": (lambda: replaced(fc=nnx.Dropout(0.5, rngs=nnx.Rngs(0))), r"`module.fc` should be an nnx.Linear, got Dropout"),
    "another rnn": (lambda: replaced(rnn=OwnArrays(2, 2, rngs=nnx.Rngs(0))), r"got OwnArrays, which has its own _arrays"),
    "another product": (lambda: other_head(dot_general=lambda *a, **k: 0), r"`dot_general` of `module.fc` should be the default"),
    "no bias": (lambda: other_head(use_bias=False), r"`module.fc` should have a bias"),
    "a number": (lambda: 3, r"`module` should be a jaxrnn.RNN, .*got int"),
}


@pytest.mark.parametrize("case", NOT_OURS)
@pytest.mark.parametrize("writer", ["to_torch", "to_safetensors", "to_onnx"])
def test_a_module_with_a_call_of_its_own_is_not_written(writer, case, tmp_path):
    make_module, message = NOT_OURS[case]
    write = {"to_torch": lambda m, _: to_torch(m), "to_safetensors": to_safetensors, "to_onnx": to_onnx}[writer]
    with pytest.raises((TypeError, ValueError), match=message) as error:
        write(make_module(), tmp_path / "file")
    assert str(error.value).startswith(f"{writer}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_module_of_the_name_of_ours_is_named_in_full():
    for theirs, name in ((tnn.GRU(2, 3), r"torch\.nn.*\.GRU"), (jaxrnn.linen.GRU(2, 3), r"jaxrnn\.linen\.GRU")):
        for write in (to_torch, to_onnx):
            with pytest.raises(TypeError, match=rf"`module` should be a jaxrnn.RNN, .*, got {name}\."):
                write(theirs)


def test_a_class_that_only_adds_is_written():
    class Small(jaxrnn.models.GRUModel):
        def __init__(self, size):
            super().__init__(size, size + 1, 1, rngs=nnx.Rngs(0))

        def loss(self, x):
            return (self(x) ** 2).mean()

    class Stepped(jaxrnn.LSTM):
        def step(self, x, state=None):
            return super().step(2 * x, state)

        def __repr__(self):
            return "Stepped"

    assert set(to_torch(Small(2))) == {f"rnn.{k}" for k in tnn.GRU(2, 3).state_dict()} | {"fc.weight", "fc.bias"}
    assert set(to_torch(Stepped(2, 3, rngs=nnx.Rngs(0)))) == set(tnn.LSTM(2, 3).state_dict())
    with pytest.raises(TypeError, match=r"Or pass target=, the PyTorch module that is to have the weights"):
        to_torch(Residual())
    with pytest.raises(TypeError, match=r"`target` should be a module of PyTorch, got dict"):
        to_torch(Residual(), target={})


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (lambda c: c.LSTMCell(activation="relu"), r"`activation` of the cell should be 'tanh', as in PyTorch, got 'relu'"),
        (lambda c: c.GRUCell(recurrent_activation="hard_sigmoid"), r"`recurrent_activation` of the cell should be 'sigmoid'"),
        (lambda c: c.RNNCell(nonlinearity="softsign"), r"`nonlinearity` of the cell should be 'tanh' or 'relu', .* got 'softsign'"),
    ],
)
def test_an_activation_that_pytorch_lacks_is_refused(cell, message):
    module = jaxrnn.Recurrent(cell(jaxrnn.cells), 2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        to_torch(module)
    with pytest.raises(ValueError, match=message):
        load_torch(module, tnn.LSTM(2, 3).state_dict())
