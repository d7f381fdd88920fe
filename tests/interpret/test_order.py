"""The order in which a data set is gone through: every row once an epoch, in an order as good as any."""

import jax
import numpy as np

from cetsim.interpret.order import batch_rows


def test_every_epoch_has_every_row_once():
    for rows, batch in ((10, 7), (64, 64), (1000, 33)):
        steps = 3 * rows
        rows_of = jax.jit(lambda step, batch=batch, rows=rows: batch_rows(jax.random.key(1), step, batch, rows))
        found = np.concatenate([rows_of(step) for step in range(-(-steps // batch))])
        for epoch in found[: 3 * rows].reshape(3, rows):
            assert sorted(epoch) == list(range(rows))
        assert not np.array_equal(found[:rows], found[rows : 2 * rows])


def test_orders_are_uniform():
    """Where each of six rows comes, over many keys: chi-squared of 25 degrees of freedom, at 6 sigma."""
    keys = jax.random.split(jax.random.key(0), 6000)
    orders = np.asarray(jax.vmap(lambda key: batch_rows(key, 0, 6, 6))(keys))
    counts = np.array([[np.sum(orders[:, place] == row) for row in range(6)] for place in range(6)])
    assert np.sum((counts - 1000) ** 2 / 1000) < 25 + 6 * np.sqrt(50)
    pairs = np.array([np.sum((orders[:, 0] == i) & (orders[:, 1] == j)) for i in range(6) for j in range(6) if i != j])
    assert np.sum((pairs - 200) ** 2 / 200) < 29 + 6 * np.sqrt(58)
