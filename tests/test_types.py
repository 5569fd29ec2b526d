"""What a type checker sees: no error in the package nor in the examples of the pages, and one at each mistake in a call."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

import jaxrnn
from jaxrnn import data_parallel, interop, linen, models, padding, runs, scaling
from jaxrnn.interop._options import RecurrentOptions, TorchOptions

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path for path in (ROOT / "README.md", *sorted((ROOT / ".docs").glob("**/*.md")))}

# Every line with a comment `error:` is one at which the checker should complain, in words that hold what follows; no other is.
CALLS = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
import jaxrnn
from jaxrnn import interop
from jaxrnn.models import LSTMModel, SequenceModel
from jaxrnn.text import CharModel

rngs, x, key, flag = nnx.Rngs(0), jnp.ones((4, 7, 10)), jax.random.key(0), bool(jax.device_count())
lstm = jaxrnn.LSTM(10, 20, num_layers=2, bidirectional=True, dropout=0, rngs=rngs)
jaxrnn.LSTM(10, 20, bidrectional=True, rngs=rngs)  # error: No parameter named "bidrectional"
jaxrnn.LSTM("10", 20, rngs=rngs)  # error: "Literal['10']" is not assignable to "int"
jaxrnn.LSTM(10, 20)  # error: Argument missing for parameter "rngs"
jaxrnn.LSTM(10, 20, rngs=key)  # error: "rngs"
jaxrnn.GRU(10, 20, proj_size=2, rngs=rngs)  # error: No parameter named "proj_size"
jaxrnn.RNN(10, 20, nonlinearity="gelu", rngs=rngs)  # error: "nonlinearity"
jaxrnn.GRU(10, 20, merge="add", rngs=rngs)  # error: "merge"
jaxrnn.GRU(10, (20, 30), 2, rngs=rngs)
jaxrnn.GRU(10, [20, 30], 2, rngs=rngs)  # error: "hidden_size"
jaxrnn.Recurrent(jaxrnn.LSTMCell, 10, 20, rngs=rngs)  # error: "cell"
jaxrnn.Recurrent(jaxrnn.LSTMCell(activation="tan"), 10, 20, rngs=rngs)  # error: "activation"
jaxrnn.LSTMCell(hidden_size=20)  # error: No parameter named "hidden_size"
jaxrnn.Stack(jaxrnn.GRUCell(), 10, 20, units=3)  # error: No parameter named "units"
jaxrnn.linen.LSTM(10, 20, bidrectional=True)  # error: No parameter named "bidrectional"
jaxrnn.linen.LSTM("10", 20)  # error: "Literal['10']" is not assignable to "int"
jaxrnn.linen.SequenceModel(jaxrnn.GRUCell(), 10, 20, 2, bidirectional=True, merge="sum")
jaxrnn.linen.SequenceModel(jaxrnn.GRUCell(), 10, 20, 2, options={})  # error: No parameter named "options"
LSTMModel(10, 20, 2, merge="sum", rngs=rngs)  # error: No parameter named "merge"
LSTMModel(10, 20, 2)  # error: Argument missing for parameter "rngs"
SequenceModel(jaxrnn.GRUCell(), 10, 20, 2, merge="none", rngs=rngs)  # error: "merge"
interop.from_torch({}, droput=0.1)  # error: No parameter named "droput"
interop.from_keras([], dropout="0.1")  # error: "dropout"

lstm(x, length=[7, 2, 0, 5])  # error: No overloads for "__call__"
lstm(x, x)  # error: No overloads for "__call__"
lstm([[1.0]])  # error: "x"
lstm(np.ones((4, 7, 10)), lengths=[7, 2, 0, 5], mask=None, h_0=lstm.initial_state(4))
lstm.step(x, carry=None)  # error: No parameter named "carry"
lstm.inital_state(4)  # error: 'inital_state'
jaxrnn.unroll(jaxrnn.GRUCell(), None, x, go_backwards=True)  # error: No overloads for "unroll"
jaxrnn.unroll(jaxrnn.GRUCell(), None, x, backend="cuda")  # error: "backend"
jaxrnn.GRUCell().init(key, 10)  # error: Argument missing for parameter "hidden_size"
jaxrnn.LTSM(10, 20)  # error: "LTSM"
lstm.layer_1.forward.w_hh = jnp.ones((20, 4, 20))
lstm.params = lstm.params

output, (h_n, c_n) = lstm(x)
output, h_n, states = lstm(x)  # error: expected 3 but received 2
output, h_n, states = lstm(x, return_states=True)
output, h_n = lstm(x, return_states=True)  # error: expected 2 but received 3
alone = jaxrnn.GRU(10, 20, output_only=True, rngs=rngs)
reveal_type(lstm(x), expected_text="tuple[Array, Any]")
reveal_type(lstm(x, return_states=flag), expected_text="Any")
reveal_type(alone(x), expected_text="Array")
reveal_type(alone(x, return_states=True), expected_text="tuple[Array, Any]")
reveal_type(jaxrnn.GRU(10, 20, output_only=False, rngs=rngs)(x), expected_text="tuple[Array, Any]")
reveal_type(jaxrnn.GRU(10, 20, output_only=flag, rngs=rngs)(x), expected_text="Any")
reveal_type(jaxrnn.Recurrent(jaxrnn.LRUCell(), 10, 20, rngs=rngs)(x), expected_text="tuple[Array, Any]")
reveal_type(lstm.step(x), expected_text="tuple[Array, Any]")
reveal_type(jaxrnn.linen.GRU(10, 20)(x), expected_text="tuple[Array, Any]")
reveal_type(jaxrnn.linen.GRU(10, 20, output_only=True)(x), expected_text="Array")
reveal_type(LSTMModel(10, 20, 2, rngs=rngs)(x), expected_text="Array")
model = SequenceModel(jaxrnn.GRUCell(), 10, 20, 2, rngs=rngs)
reveal_type(model(x), expected_text="Array")
reveal_type(model(x, return_state=True), expected_text="tuple[Array, Any]")
chars = CharModel("ab", jaxrnn.GRUCell(), 3, 4, rngs=rngs)
reveal_type(chars([0, 1], state=None), expected_text="tuple[Array, Any]")
reveal_type(chars.step(chars.encode("a")[0]), expected_text="tuple[Array, Any]")
chars([0, 1], None)  # error: Expected 1 positional argument
CharModel("ab", jaxrnn.GRUCell(), 3, 4)  # error: Argument missing for parameter "rngs"
reveal_type(lstm.stack.apply(None, x), expected_text="tuple[Array, Any]")
reveal_type(jaxrnn.unroll(jaxrnn.GRUCell(), None, x), expected_text="tuple[Any, Array]")
reveal_type(jaxrnn.unroll(jaxrnn.GRUCell(), None, x, return_states=True), expected_text="tuple[Any, Array, Any]")
reveal_type(jaxrnn.linear_scan(x, x), expected_text="Array")
reveal_type(jaxrnn.linear_scan((x, x), (x, x)), expected_text="tuple[Array, Array]")


def passed_on(module: jaxrnn.LSTM):
    reveal_type(module(x), expected_text="tuple[Array, Any]")


class Tagger(jaxrnn.LSTM):
    def __init__(self, size: int, rngs: nnx.Rngs):
        super().__init__(size, size, bidirectional=True, rngs=rngs)


reveal_type(Tagger(10, rngs)(x), expected_text="tuple[Array, Any]")
Tagger(10, rngs)(x, lengths=2.5)  # error: No overloads for "__call__"
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What pyright says: for each file that it looked at, its errors as pairs (line, text). One run for all, since it reads JAX."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "calls.py").write_text(CALLS, encoding="utf-8")
    for name, path in PAGES.items():
        examples = re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for number, example in enumerate(examples):
            (folder / f"{name}-{number}.py").write_text(example, encoding="utf-8")
    shutil.copytree(ROOT / "jaxrnn", folder / "jaxrnn", ignore=shutil.ignore_patterns("__pycache__"))
    config = {
        "typeCheckingMode": "standard",
        "reportMissingImports": False,  # of frameworks that are not installed; that ours are right is seen where examples run
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    try:
        report = json.loads(run.stdout[run.stdout.index("{") :])
    except ValueError:
        pytest.fail(f"pyright did not run:\n{run.stdout}\n{run.stderr}")
    assert report["summary"]["filesAnalyzed"] > 100
    errors: dict[str, list] = {}
    for one in report["generalDiagnostics"]:
        if one["severity"] == "error":
            place = (one["range"]["start"]["line"] + 1, one["message"])
            errors.setdefault(one["file"], []).append(place)
    return folder, errors


@pytest.mark.slow
@pytest.mark.newest
def test_the_package_and_the_examples_have_no_errors(found):
    folder, errors = found
    places = [f"{Path(file).relative_to(folder)}:{line}: {text}" for file in errors for line, text in errors[file]]
    assert not [place for place in places if not place.startswith("calls.py:")]


@pytest.mark.slow
@pytest.mark.newest
def test_mistakes_in_calls_are_seen_and_results_have_their_types(found):
    folder, errors = found
    got: dict[int, str] = {}
    for line, text in errors[str(folder / "calls.py")]:
        got[line] = got.get(line, "") + text + "\n"
    wrong = []
    for number, line in enumerate(CALLS.splitlines(), 1):
        call, _, wanted = line.partition("  # error: ")
        came = got.get(number, "")
        if (wanted not in came) if wanted else came:
            wrong.append(f"{call}: {wanted or 'no error'} was expected, got {came or 'none'}")
    assert not wrong


# What Python itself shows ------------------------------------------------------------------------------------------------

OTHERS = (data_parallel, padding, runs, scaling, jaxrnn.text)
"""Modules without `__all__`: what they define is public."""
WITHOUT_ALL = tuple(f"{module.__name__}." for module in OTHERS)
PUBLIC = [getattr(module, name) for module in (jaxrnn, linen, models) for name in module.__all__]
PUBLIC += [one for m in OTHERS for name, one in vars(m).items() if name[0] != "_" and getattr(one, "__module__", "") == m.__name__]
CLASSES = [one for one in PUBLIC if inspect.isclass(one) and not issubclass(one, tuple)]  # states and parameters explain themselves
LOADERS = [getattr(interop, name) for name in interop.__all__ if name.startswith("from_")]


def test_checkers_are_told_every_public_name():
    """They read `__all__`, which is written in full."""
    assert {cell.__name__ for cell in jaxrnn.CELLS.values()} <= set(jaxrnn.cells.__all__) <= set(jaxrnn.__all__)
    assert all(hasattr(jaxrnn, name) for name in jaxrnn.__all__)


def described(documented) -> list[str]:
    """The names of the arguments in the `Args:` of a docstring."""
    text = re.search(r"^Args:\n((?: .*\n|\n)*)", inspect.cleandoc(documented.__doc__) + "\n", flags=re.MULTILINE)
    lines = re.findall(r"^    (\w[\w, ]*): ", text.group(1), flags=re.MULTILINE) if text else []
    return [name.strip() for line in lines for name in line.split(",")]


@pytest.mark.parametrize("one", CLASSES, ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_every_argument_of_a_class_is_in_its_signature_and_its_docstring(one):
    parameters = inspect.signature(one).parameters.values()
    assert not [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    names = {p.name for p in parameters} - {"parent", "name"}  # of every Linen module
    assert sorted(described(one)) == sorted(names)


def written(name: str, one) -> dict:
    """The functions of a class or function by their names; of one that is defined anew, the first, whose types hold for all."""
    if not inspect.isclass(one):
        return {name: one}
    found = {}
    for cls in reversed([cls for cls in one.__mro__ if cls.__module__.startswith("jaxrnn.")]):
        for attribute, value in vars(cls).items():
            value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(value) and (attribute == "__call__" or not attribute.startswith("_")):
                found.setdefault(f"{name}.{attribute}", value)
    return found


def belongs(one, name: str) -> bool:
    """Whether it is ours, and not what a module without `__all__` imports."""
    module = getattr(one, "__module__", "")
    return module.startswith("jaxrnn.") and (module == name.rpartition(".")[0] or not name.startswith(WITHOUT_ALL))


def test_every_public_function_says_what_it_takes_and_gives():
    modules = (jaxrnn, linen, models, interop, jaxrnn.trees, jaxrnn.initializers, *OTHERS)
    names = [(m, name) for m in modules for name in getattr(m, "__all__", vars(m)) if name[0] != "_"]
    public = {f"{m.__name__}.{name}": getattr(m, name) for m, name in names}
    ours = {name: one for name, one in public.items() if callable(one) and belongs(one, name)}
    functions = {name: f for path, one in ours.items() for name, f in written(path, one).items()}
    assert len(functions) > 200
    silent = []
    for name, function in functions.items():
        signature = inspect.signature(function)
        said = {p.name: p.annotation for p in signature.parameters.values() if p.name not in ("self", "cls")}
        said["return"] = signature.return_annotation
        silent += [f"{name}: {part}" for part, annotation in said.items() if annotation is inspect.Parameter.empty]
    assert not silent


@pytest.mark.parametrize("one", LOADERS, ids=lambda one: one.__name__)
def test_options_of_loaders_are_in_their_signatures(one):
    names = list(inspect.signature(one).parameters)
    assert "options" not in names
    assert set(RecurrentOptions.__annotations__) <= set(names)
    assert {"options", *described(one)} - {"options"} <= set(names)
    with pytest.raises(TypeError, match=r"`droput`\.\nDid you mean `dropout`\?"):
        one({}, droput=0.5)


def test_options_of_loaders_are_those_of_modules():
    told = {"cell", "input_size", "hidden_size", "num_layers", "bias", "bidirectional"}  # by the weights
    assert set(RecurrentOptions.__annotations__) == set(inspect.signature(jaxrnn.Recurrent).parameters) - told
    assert set(TorchOptions.__annotations__) == {*RecurrentOptions.__annotations__, "nonlinearity"}


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_the_flavours_have_the_same_arguments_and_defaults(name):
    kinds = (getattr(jaxrnn, name), getattr(linen, name), jaxrnn.Recurrent)
    nnx_, linen_, any_ = (inspect.signature(one).parameters for one in kinds)
    stack = inspect.signature(jaxrnn.Stack).parameters
    own = {"deterministic", "named_axes", "parent", "name"}
    assert set(linen_) - own == set(nnx_) - {"rngs"}
    for other in (linen_, any_, stack):
        assert {n: p.default for n, p in other.items() if n in nnx_} == {n: nnx_[n].default for n in other if n in nnx_}
    assert set(any_) - {"cell"} == set(nnx_) - {"nonlinearity", "proj_size"}
    assert nnx_["rngs"].default is inspect.Parameter.empty


def test_a_signature_is_that_of_a_class_or_of_its_call():
    assert list(inspect.signature(jaxrnn.LSTM).parameters)[:3] == ["input_size", "hidden_size", "num_layers"]
    assert list(inspect.signature(jaxrnn.LSTM(3, 5, rngs=nnx.Rngs(0))).parameters)[:3] == ["x", "h_0", "lengths"]

    class Mine(jaxrnn.LSTM):
        def __init__(self, size, rngs):
            super().__init__(size, size, rngs=rngs)

    assert list(inspect.signature(Mine).parameters) == ["size", "rngs"]
