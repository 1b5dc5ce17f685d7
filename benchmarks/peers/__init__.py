"""One small file for each library that speed.py measures; `worker.py` runs one of them as a process of its own.

A peer's module has PACKAGES, whose versions the header lists, and those of the following that it can do. It says in
CANNOT why it can't do another, or does it differently (NOTE).

    fit(X, net, *, epochs, batch, rate, after=None, **options) -> reconstruct
        A fit of the plain net; `after(reconstruct)`, if given, is called after each epoch.
    linear(X, K) -> {name of the way: function that fits and gives reconstruct}
    encoders(net, *, X) -> {name of the way: function X -> code}
    default(X)
        A fit with nothing set.

CODES are the code activations it can have, "relu" and "identity" unless said; USUAL is its own batch and rate.
"""
