"""Ragged sequences as one array, in few shapes."""

import jax.numpy as jnp
import numpy as np
import pytest
from support import unannotated

from jaxrnn.padding import bucket_limits, pad


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, jnp.bfloat16, np.complex64, np.int32, np.int64, np.uint8, np.bool_]
)
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_padding_keeps_values_dtype_and_other_axes(dtype, shape):
    rng = np.random.default_rng(1)
    sequences = [rng.integers(1, 2 if dtype == np.bool_ else 200, (n, *shape)).astype(dtype) for n in (3, 0, 5, 1)]
    for to, length in ((None, 5), (6, 6), ((4, 9, 7), 7), (np.array([5, 3]), 5)):
        x, lengths = pad(sequences, to=to)
        assert x.dtype == dtype
        assert x.shape == (4, length, *shape)
        assert (lengths.tolist(), lengths.dtype) == ([3, 0, 5, 1], np.int32)
        for row, sequence in zip(x, sequences, strict=True):
            np.testing.assert_array_equal(row[: len(sequence)], sequence)
            assert not row[len(sequence) :].any()


def test_lists_of_tokens_are_sequences_and_may_be_empty():
    x, lengths = pad([[], [4, 5], (6,)])
    assert (x.tolist(), lengths.tolist()) == ([[0, 0], [4, 5], [6, 0]], [0, 2, 1])
    x, lengths = pad([[[1.0, 2.0]], []], to=2)
    assert (x.tolist(), lengths.tolist()) == ([[[1, 2], [0, 0]], [[0, 0], [0, 0]]], [1, 0])


@pytest.mark.parametrize(
    ("sequences", "to", "error", "message"),
    [
        (None, None, TypeError, "`sequences` should be a list or an array, got None"),
        (np.array(3), None, TypeError, r"`sequences` should be a list or an array, got array\(3\)"),
        ([], None, ValueError, "`sequences` should hold at least one sequence, got none"),
        ([np.ones((3, 2)), np.ones((2, 3))], None, ValueError, r"`sequences\[1\]` should have shape \(time, 2\), .* got \(2, 3\)"),
        ([np.ones(3), np.ones(2, int)], None, TypeError, r"`sequences\[1\]` should have dtype float64, as the first, got int64"),
        ([np.ones(3), np.ones(7)], 5, ValueError, r"`sequences\[1\]` should be at most 5 steps long, by `to`, got 7"),
        ([np.ones(3), np.ones(7)], (2, 6), ValueError, r"`sequences\[1\]` should be at most 6 steps long, by `to`, got 7"),
        ([np.ones(3)], (), ValueError, "`to` should hold at least one length, got none"),
        ([np.ones(3)], 3.0, TypeError, r"`to` should be an integer, got 3\.0"),
        ([np.ones(3)], -1, ValueError, "`to` should be at least 0, got -1"),
        ([3, 4], None, TypeError, r"`sequences\[0\]` should be an array \(time, …\) of numbers, got array\(3\)"),
        (["abc"], None, TypeError, r"`sequences\[0\]` should be an array \(time, …\) of numbers"),
        ([[[1], [1, 2]]], None, TypeError, r"`sequences\[0\]` should be one array \(time, …\), got a ragged list"),
    ],
)
def test_what_cannot_be_padded_is_named(sequences, to, error, message):
    with unannotated(), pytest.raises(error, match=f"pad: {message}"):
        pad(sequences, to=to)


def test_limits_hold_all_lengths_in_buckets_of_about_one_size():
    lengths = np.random.default_rng(0).integers(1, 400, 1000)
    for buckets in (1, 3, 7):
        limits = bucket_limits(lengths, buckets)
        assert list(limits) == sorted(set(limits))
        assert limits[-1] == lengths.max()
        counts = np.bincount(np.searchsorted(limits, lengths))
        assert len(counts) == buckets
        assert counts.max() - counts.min() < 0.02 * len(lengths)
    assert bucket_limits(iter([5, 5, 5, 9]), 4) == (5, 9)


@pytest.mark.parametrize(
    ("lengths", "buckets", "error", "message"),
    [
        (7, 2, TypeError, "`lengths` should be a list or an array, got 7"),
        ([], 2, ValueError, "`lengths` should hold at least one length, got none"),
        ([3, -1], 2, ValueError, "`lengths` should be at least 0, got -1"),
        ([3.5], 2, TypeError, r"`lengths` should be integers \(n,\), got dtype float64, shape \(1,\)"),
        ([[3], [4]], 2, TypeError, r"`lengths` should be integers \(n,\), got dtype int64, shape \(2, 1\)"),
        ([3], 0, ValueError, "`buckets` should be at least 1, got 0"),
    ],
)
def test_limits_of_wrong_lengths_are_refused(lengths, buckets, error, message):
    with unannotated(), pytest.raises(error, match=f"bucket_limits: {message}"):
        bucket_limits(lengths, buckets)
