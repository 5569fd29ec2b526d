"""The training scripts: what they print, what they refuse, and that their losses are PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_regression


@pytest.fixture(autouse=True)
def promotion():
    """Optax mixes dtypes, so what trains does without strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# Regression ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", train_regression.MODELS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 5e-5)])
def test_every_loss_of_the_regression_is_pytorchs(name, num_layers, precision, tolerance, capsys):
    """From PyTorch's weights, on the same data, all of the 100 epochs."""
    torch = pytest.importorskip("torch")
    from flax import nnx

    torch.set_num_threads(1)  # more than these tiny products can use, where others work too, is very slow
    torch.manual_seed(3)
    dtype = getattr(torch, precision)
    rnn = getattr(torch.nn, name)(10, 20, num_layers, batch_first=True, dtype=dtype)
    fc = torch.nn.Linear(20, 2, dtype=dtype)
    x, y = torch.randn(5, 3, 10, dtype=dtype), torch.randn(5, 2, dtype=dtype)
    start = {k: v.detach().numpy().copy() for k, v in rnn.state_dict().items()}
    kernel, bias = fc.weight.detach().numpy().T.copy(), fc.bias.detach().numpy().copy()

    optimizer = torch.optim.Adam([*rnn.parameters(), *fc.parameters()], lr=1e-3)
    wanted = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(fc(rnn(x)[0][:, -1]), y)
        loss.backward()
        optimizer.step()
        wanted.append(loss.item())

    with jax.enable_x64(precision == "float64"):
        model = train_regression.MODELS[name](10, 20, 2, num_layers, rngs=nnx.Rngs(0))
        gates = model.rnn.stack.cell.gates
        for layer, (params,) in enumerate(model.rnn.params):
            for field in ("w_ih", "w_hh", "b_ih", "b_hh"):
                theirs = start[f"{'weight' if field[0] == 'w' else 'bias'}_{field[2:]}_l{layer}"]
                ours = theirs.reshape(len(gates), 20, -1).transpose(2, 0, 1)
                getattr(params, field).set_value(jnp.asarray(ours if field[0] == "w" else ours[0]))
        model.fc.kernel.set_value(jnp.asarray(kernel))
        model.fc.bias.set_value(jnp.asarray(bias))
        data = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
        losses, _ = train_regression.train(name, model, *data, learning_rate=1e-3, epochs=100)

    np.testing.assert_allclose(losses, wanted, rtol=0, atol=tolerance)
    assert f"{name} Epoch [10/100], Loss: {losses[9]:.4f}\n" in capsys.readouterr().out
