"""One step of every cell in NumPy, transcribed from the papers' equations.

Nothing here may import the library or JAX: an oracle that shares code with what it judges judges
nothing. Each oracle takes the input, the state and the arrays of one cell by name and returns the
new state. `w_ih[:, k]`, `w_hh[:, k]`, `b_ih[k]` and `b_hh[k]` belong to the k-th gate of the order
that the first line of the oracle names.
"""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def relu(a):
    return np.maximum(a, 0)


SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al., 2017, arXiv:1706.02515, section 2

ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "hard_sigmoid": lambda a: np.minimum(np.maximum(a / 6 + 0.5, 0), 1),
    "hard_sigmoid_keras2": lambda a: np.minimum(np.maximum(a / 5 + 0.5, 0), 1),
    "relu": relu,
    "elu": lambda a: np.where(a > 0, a, np.exp(a) - 1),
    "selu": lambda a: SCALE * np.where(a > 0, a, ALPHA * (np.exp(a) - 1)),
    "softplus": lambda a: np.log(1 + np.exp(a)),
    "softsign": lambda a: a / (1 + abs(a)),
    "silu": lambda a: a * sigmoid(a),
    "linear": lambda a: a,
}


def project(v, w, b, gate):
    """The pre-activation that `v` gives to one gate."""
    a = v @ w[:, gate]
    return a if b is None else a + b[gate]


def rnn(x, state, p, activation=np.tanh):
    """Elman, 1990, with two biases, as in `torch.nn.RNN`."""
    from_x = project(x, p["w_ih"], p["b_ih"], 0)
    from_h = project(state["h"], p["w_hh"], p["b_hh"], 0)
    return {"h": activation(from_x + from_h)}


def lstm(x, state, p, activation=np.tanh, gate=sigmoid):
    """Gers et al., 2000. Order i f g o."""
    h, c = state["h"], state["c"]
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    i = gate(project(x, w, b, 0) + project(h, u, v, 0))
    f = gate(project(x, w, b, 1) + project(h, u, v, 1))
    g = activation(project(x, w, b, 2) + project(h, u, v, 2))
    o = gate(project(x, w, b, 3) + project(h, u, v, 3))
    c = f * c + i * g
    return {"h": o * activation(c), "c": c}


def projected_lstm(x, state, p):
    """Sak et al., 2014, arXiv:1402.1128, section 2, without peepholes. Order i f g o."""
    new = lstm(x, state, p)
    return {"h": new["h"] @ p["w_hr"], "c": new["c"]}


def peephole_lstm(x, state, p):
    """Gers and Schmidhuber, 2000; the ONNX operator LSTM with input P. Order i f g o."""
    h, c = state["h"], state["c"]
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    p_i, p_f, p_o = p["p"]
    i = sigmoid(project(x, w, b, 0) + project(h, u, v, 0) + p_i * c)
    f = sigmoid(project(x, w, b, 1) + project(h, u, v, 1) + p_f * c)
    g = np.tanh(project(x, w, b, 2) + project(h, u, v, 2))
    c = f * c + i * g
    o = sigmoid(project(x, w, b, 3) + project(h, u, v, 3) + p_o * c)
    return {"h": o * np.tanh(c), "c": c}


def coupled_lstm(x, state, p):
    """Greff et al., 2015, arXiv:1503.04069, variant CIFG: f = 1 - i. Order i g o."""
    h, c = state["h"], state["c"]
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    i = sigmoid(project(x, w, b, 0) + project(h, u, v, 0))
    g = np.tanh(project(x, w, b, 1) + project(h, u, v, 1))
    o = sigmoid(project(x, w, b, 2) + project(h, u, v, 2))
    c = (1 - i) * c + i * g
    return {"h": o * np.tanh(c), "c": c}


def gru(x, state, p, activation=np.tanh, gate=sigmoid):
    """Cho et al., 2014, as in cuDNN and `torch.nn.GRU`: r acts after the product, z keeps the old state. Order r z n."""
    h = state["h"]
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    r = gate(project(x, w, b, 0) + project(h, u, v, 0))
    z = gate(project(x, w, b, 1) + project(h, u, v, 1))
    n = activation(project(x, w, b, 2) + r * project(h, u, v, 2))
    return {"h": (1 - z) * n + z * h}


def chung_gru(x, state, p, activation=np.tanh, gate=sigmoid):
    """Chung et al., 2014, arXiv:1412.3555: r acts before the product. Order r z n."""
    h = state["h"]
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    r = gate(project(x, w, b, 0) + project(h, u, v, 0))
    z = gate(project(x, w, b, 1) + project(h, u, v, 1))
    n = activation(project(x, w, b, 2) + project(r * h, u, v, 2))
    return {"h": (1 - z) * h + z * n}


def mgu(x, state, p):
    """Zhou et al., 2016, arXiv:1603.09420: f resets and updates. Order f n."""
    h = state["h"]
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    f = sigmoid(project(x, w, b, 0) + project(h, u, v, 0))
    n = np.tanh(project(x, w, b, 1) + project(f * h, u, v, 1))
    return {"h": (1 - f) * h + f * n}


def ind_rnn(x, state, p):
    """Li et al., 2018, arXiv:1803.04831: every unit sees only itself; u is the row of `w_hh`."""
    u = p["w_hh"][0]
    return {"h": relu(project(x, p["w_ih"], p["b_ih"], 0) + u * state["h"])}


def layer_norm(a, norm, epsilon):
    """Ba et al., 2016, equation 4, of each vector of a batch; epsilon as in the authors' code."""
    rows = []
    for row in a.reshape(-1, norm["gain"].size):
        mean = sum(row) / len(row)
        variance = sum((row - mean) ** 2) / len(row)
        rows.append((row - mean) / np.sqrt(variance + epsilon) * norm["gain"].ravel() + norm["shift"].ravel())
    return np.array(rows).reshape(a.shape)


def products(v, w):
    """The products of every gate, one behind the other: (*batch, gates * hidden)."""
    return np.concatenate([v @ w[:, gate] for gate in range(w.shape[1])], axis=-1)


def layer_norm_lstm(x, state, p, epsilon=1e-5):
    """Ba et al., 2016, arXiv:1607.06450, supplement, equations 20-22. Order i f g o."""
    from_h = layer_norm(products(state["h"], p["w_hh"]), p["norm_h"], epsilon)
    from_x = layer_norm(products(x, p["w_ih"]), p["norm_x"], epsilon)
    b = 0 if p["b_ih"] is None else p["b_ih"].ravel()
    i, f, g, o = np.split(from_h + from_x + b, 4, axis=-1)
    c = sigmoid(f) * state["c"] + sigmoid(i) * np.tanh(g)
    return {"h": sigmoid(o) * np.tanh(layer_norm(c, p["norm_c"], epsilon)), "c": c}


def layer_norm_gru(x, state, p, epsilon=1e-5):
    """Ba et al., 2016, arXiv:1607.06450, supplement, equations 23-25: r and z normalised together, n alone. Order r z n.

    But z keeps the old state, as in `torch.nn.GRU`; theirs takes the new.
    """
    b = np.zeros_like(p["norm_h"]["gain"]) if p["b_ih"] is None else p["b_ih"]
    gates, candidate = slice(0, 2), slice(2, 3)

    def normalised(v, w, norm, rows):
        part = {"gain": norm["gain"][rows], "shift": norm["shift"][rows]}
        return layer_norm(products(v, w[:, rows]), part, epsilon)

    rz_x = normalised(x, p["w_ih"], p["norm_x"], gates) + b[gates].ravel()
    n_x = normalised(x, p["w_ih"], p["norm_x"], candidate) + b[2]
    r, z = np.split(sigmoid(rz_x + normalised(state["h"], p["w_hh"], p["norm_h"], gates)), 2, axis=-1)
    n = np.tanh(n_x + r * normalised(state["h"], p["w_hh"], p["norm_h"], candidate))
    return {"h": (1 - z) * n + z * state["h"]}


def convolve(v, w, b, gate, space_axes):
    """Cross-correlation that keeps the size, point by point; `v` is (*batch, *space, channels)."""
    batch_axes = v.ndim - space_axes - 1
    space, window = v.shape[batch_axes:-1], w.shape[:space_axes]
    out = np.zeros((*v.shape[:-1], w.shape[-1]))
    for point in np.ndindex(space):
        for offset in np.ndindex(window):
            source = tuple(a + k - (n - 1) // 2 for a, k, n in zip(point, offset, window, strict=True))
            if all(0 <= a < n for a, n in zip(source, space, strict=True)):
                out[(..., *point, slice(None))] += v[(..., *source, slice(None))] @ w[offset][:, gate]
    return out if b is None else out + b[gate]


def conv_lstm(x, state, p):
    """Shi et al., 2015, arXiv:1506.04214, equation 3, without peepholes. Order i f g o."""
    h, c = state["h"], state["c"]
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    n = w.ndim - 3
    i = sigmoid(convolve(x, w, b, 0, n) + convolve(h, u, v, 0, n))
    f = sigmoid(convolve(x, w, b, 1, n) + convolve(h, u, v, 1, n))
    g = np.tanh(convolve(x, w, b, 2, n) + convolve(h, u, v, 2, n))
    o = sigmoid(convolve(x, w, b, 3, n) + convolve(h, u, v, 3, n))
    c = f * c + i * g
    return {"h": o * np.tanh(c), "c": c}


def conv_gru(x, state, p):
    """Ballas et al., 2016, arXiv:1511.06432, section 3.1: r acts before the convolution. Order r z n."""
    h = state["h"]
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    k = w.ndim - 3
    r = sigmoid(convolve(x, w, b, 0, k) + convolve(h, u, v, 0, k))
    z = sigmoid(convolve(x, w, b, 1, k) + convolve(h, u, v, 1, k))
    n = np.tanh(convolve(x, w, b, 2, k) + convolve(r * h, u, v, 2, k))
    return {"h": (1 - z) * h + z * n}


def li_gru(x, state, p):
    """Ravanelli et al., 2018, arXiv:1803.10225, section 3, without batch normalisation. Order z n."""
    h = state["h"]
    z = sigmoid(project(x, p["w_ih"], p["b_ih"], 0) + h @ p["w_hh"][:, 0])
    n = relu(project(x, p["w_ih"], p["b_ih"], 1) + h @ p["w_hh"][:, 1])
    return {"h": z * h + (1 - z) * n}


def slstm(x, state, p, forget_gate="sigmoid"):
    """Beck et al., 2024, arXiv:2405.04517, equations 8 to 17. Order i f z o."""
    h, c, n, m = (state[k] for k in "hcnm")
    w, b, u, v = p["w_ih"], p["b_ih"], p["w_hh"], p["b_hh"]
    i, f, z, o = (project(x, w, b, k) + project(h, u, v, k) for k in range(4))
    log_f = f if forget_gate == "exp" else -np.log1p(np.exp(-f))
    new_m = np.maximum(log_f + m, i)
    i, f = np.exp(i - new_m), np.exp(log_f + m - new_m)
    c = f * c + i * np.tanh(z)
    n = f * n + i
    return {"h": sigmoid(o) * c / n, "c": c, "n": n, "m": new_m}


def min_gru(x, state, p, candidate=lambda a: a):
    """Feng et al., 2024, arXiv:2410.01201, section 3.1. Order z n."""
    z = sigmoid(project(x, p["w_ih"], p["b_ih"], 0))
    n = candidate(project(x, p["w_ih"], p["b_ih"], 1))
    return {"h": (1 - z) * state["h"] + z * n}


def min_lstm(x, state, p, candidate=lambda a: a):
    """Feng et al., 2024, arXiv:2410.01201, section 3.2: both gates divided by their sum. Order f i n."""
    f = sigmoid(project(x, p["w_ih"], p["b_ih"], 0))
    i = sigmoid(project(x, p["w_ih"], p["b_ih"], 1))
    n = candidate(project(x, p["w_ih"], p["b_ih"], 2))
    return {"h": f / (f + i) * state["h"] + i / (f + i) * n}


def positive(a):
    """g of Feng et al., 2024, appendix B.3."""
    return np.where(a >= 0, a + 0.5, sigmoid(a))


def lru(x, state, p):
    """Orvieto et al., 2023, arXiv:2303.06349, section 3 and appendix A, in complex numbers; they lie side by side in h."""
    h = state["h"][..., 0::2] + 1j * state["h"][..., 1::2]
    b = p["w_ih"][:, 0] + 1j * p["w_ih"][:, 1]
    eigenvalue = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    h = eigenvalue * h + np.exp(p["gamma_log"]) * (x @ b)
    return {"h": np.stack([h.real, h.imag], -1).reshape(*h.shape[:-1], -1)}


def rg_lru(x, state, p, blocks=1):
    """De et al., 2024, arXiv:2402.19427, section 2.4. Order r i."""
    u = x if p.get("w_x") is None else x @ p["w_x"]
    hidden = u.shape[-1]
    rows = np.arange(hidden).reshape(blocks, -1)
    whole = np.zeros((hidden, 2, hidden))  # the blocks, in the matrix whose diagonal they are
    for n in range(blocks):
        whole[np.ix_(rows[n], [0, 1], rows[n])] = p["w_ih"][:, :, rows[n]]
    r = sigmoid(project(u, whole, p["b_ih"], 0))
    i = sigmoid(project(u, whole, p["b_ih"], 1))
    a = sigmoid(p["decay"]) ** (8 * r)
    return {"h": a * state["h"] + np.sqrt(1 - a**2) * (i * u)}


def para_gru(x, state, p):
    """Danieli et al., 2025, arXiv:2510.21450, equations 3.1a and 3.3. Order z r n."""
    h, a = state["h"], p["w_hh"]
    z = sigmoid(a[0] * h + project(x, p["w_ih"], p["b_ih"], 0))
    r = sigmoid(a[1] * h + project(x, p["w_ih"], p["b_ih"], 1))
    n = np.tanh(a[2] * (h * r) + project(x, p["w_ih"], p["b_ih"], 2))
    return {"h": (1 - z) * h + z * n}


def para_lstm(x, state, p):
    """Danieli et al., 2025, arXiv:2510.21450, equation 3.1b. Order f o g."""
    h, c, a = state["h"], state["c"], p["w_hh"]
    f = sigmoid(a[0] * h + p["p"][0] * c + project(x, p["w_ih"], p["b_ih"], 0))
    c = f * c + (1 - f) * np.tanh(a[2] * h + project(x, p["w_ih"], p["b_ih"], 2))
    o = sigmoid(a[1] * h + p["p"][1] * c + project(x, p["w_ih"], p["b_ih"], 1))
    return {"h": o * np.tanh(c), "c": c}


ORACLES = {
    "RNN": rnn,
    "LSTM": lstm,
    "GRU": gru,
    "ChungGRU": chung_gru,
    "PeepholeLSTM": peephole_lstm,
    "CoupledLSTM": coupled_lstm,
    "ProjectedLSTM": projected_lstm,
    "LayerNormLSTM": layer_norm_lstm,
    "LayerNormGRU": layer_norm_gru,
    "MGU": mgu,
    "IndRNN": ind_rnn,
    "ConvLSTM1D": conv_lstm,
    "ConvLSTM2D": conv_lstm,
    "LiGRU": li_gru,
    "SLSTM": slstm,
    "ConvGRU1D": conv_gru,
    "ConvGRU2D": conv_gru,
    "MinGRU": min_gru,
    "MinLSTM": min_lstm,
    "LRU": lru,
    "RGLRU": rg_lru,
    "ParaGRU": para_gru,
    "ParaLSTM": para_lstm,
}
