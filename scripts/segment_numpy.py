"""The tagger of `segment.py` in NumPy, one sentence at a time: Paddle's definitions of its operators `gru` and `crf_decoding`.

Written from what Paddle 1.6 computes, without this library and without JAX, to compare with.
"""

import numpy as np


def score(arrays: dict[str, np.ndarray], numbers) -> np.ndarray:
    """The score of every tag (time, tags) at each character of a sentence, in float64."""
    a = {name: array.astype(np.float64) for name, array in arrays.items() if name != "word_emb"}

    def gru(x, k):
        weight = a[f"gru_{k}.w_0"].ravel()
        size = a[f"gru_{k}.w_0"].shape[0]
        gate_weight, state_weight = weight[: 2 * size**2].reshape(size, 2 * size), weight[2 * size**2 :].reshape(size, size)
        h, outputs = np.zeros(size), []
        for gates in x @ a[f"fc_{k}.w_0"] + a[f"fc_{k}.b_0"] + a[f"gru_{k}.b_0"]:
            update, reset = np.split(1 / (1 + np.exp(-gates[: 2 * size] - h @ gate_weight)), 2)
            candidate = np.tanh(gates[2 * size :] + (reset * h) @ state_weight)
            h = (1 - update) * h + update * candidate
            outputs.append(h)
        return np.array(outputs)

    x = arrays["word_emb"][numbers].astype(np.float64)
    for k in (0, 2):
        x = np.concatenate([gru(x, k), gru(x[::-1], k + 1)[::-1]], axis=1)
    return x @ a["fc_4.w_0"] + a["fc_4.b_0"]


def decode(scores: np.ndarray, crf: np.ndarray) -> list[int]:
    """The path of tags with the highest sum of scores; `crf` holds those of a first tag, of a last, and of one after another."""
    first, last, move = crf[0], crf[1], crf[2:]
    best, came_from = first + scores[0], []
    for score in scores[1:]:
        paths = best[:, None] + move
        came_from.append(paths.argmax(axis=0))
        best = paths.max(axis=0) + score
    path = [int((best + last).argmax())]
    for tags in reversed(came_from):
        path.append(int(tags[path[-1]]))
    return path[::-1]
