"""A small network in Flax NNX."""

from flax import nnx


class Net(nnx.Module):
    def __init__(self, momentum=0.99, dropout=0.0, norm=nnx.BatchNorm):
        rngs = nnx.Rngs(0)
        options = {"momentum": momentum} if norm is nnx.BatchNorm else {}
        self.hidden = nnx.Linear(8, 32, rngs=rngs)
        self.norm = norm(32, rngs=rngs, **options)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))
