"""Which rows make each batch: a seeded order that can be stopped and taken up again, and buckets for sequences of different
lengths. Nothing of JAX may be called here."""

from collections.abc import Sequence

import numpy as np

from jaxrnn.padding import bucket_limits


class BatchSampler:
    """Batches of row numbers, shuffled anew in each epoch by `seed` and the number of the epoch.

    Rows of different lengths are put in buckets, so that a batch holds rows of similar lengths and pads them to the longest
    length of its bucket: there are as many shapes as buckets. What does not fill a batch goes to the next bucket; the last
    batch of an epoch is filled with rows of that epoch again. All batches have `batch_size` rows.

    Args:
        lengths: the length of each row; all the same for data without padding.
        batch_size: rows of a batch.
        seed: of the shuffling.
        buckets: how many, at most; each gets about as many rows.

    Attributes:
        limits: the lengths that the buckets pad to, ascending.
        batches: batches in an epoch.

    Example:
        >>> sampler = BatchSampler([3, 9, 4, 8, 3], batch_size=2, seed=0, buckets=2)
        >>> sampler.limits, sampler.batches
        ((4, 9), 3)
        >>> rows, limit = sampler.next()
        >>> rows.shape, limit in sampler.limits
        ((2,), True)
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, *, seed: int, buckets: int = 1):
        self.lengths = np.asarray(lengths)
        self.batch_size, self.seed = batch_size, seed
        self.limits = bucket_limits(self.lengths, buckets)
        self.epoch = self.position = 0
        self._now = self._shuffle()
        self.batches = len(self._now)

    def _shuffle(self) -> list[tuple[np.ndarray, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.lengths))
        bucket = np.searchsorted(self.limits, self.lengths[shuffled])
        batches, left = [], shuffled[:0]
        for k, limit in enumerate(self.limits):
            rows = np.concatenate([left, shuffled[bucket == k]])
            full = len(rows) // self.batch_size * self.batch_size
            batches += [(r, limit) for r in rows[:full].reshape(-1, self.batch_size)]
            left = rows[full:]
        if len(left):
            again = np.resize(shuffled, self.batch_size - len(left))
            batches.append((np.concatenate([left, again]), self.limits[-1]))
        return [batches[k] for k in rng.permutation(len(batches))]

    def next(self) -> tuple[np.ndarray, int]:
        """The rows of the next batch, and the length to pad them to."""
        if self.position == self.batches:
            self.epoch, self.position = self.epoch + 1, 0
            self._now = self._shuffle()
        self.position += 1
        return self._now[self.position - 1]

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Where the sampler stands, for a checkpoint."""
        return {name: np.asarray(getattr(self, name), np.int32) for name in ("epoch", "position")}

    @state.setter
    def state(self, state: dict[str, np.ndarray]):
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._now = self._shuffle()

    @property
    def padding_fraction(self) -> float:
        """The share of the steps of an epoch that is padding."""
        steps = sum(limit * len(rows) for rows, limit in self._now)
        return 1 - sum(int(self.lengths[rows].sum()) for rows, _ in self._now) / steps
