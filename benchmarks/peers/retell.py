"""retell itself, by the same rules; `options` are settings of Autoencoder."""

from retell import Autoencoder

PACKAGES = ("retell", "torch", "numpy")


def fit(X, net, epochs, batch, rate, **options):
    model = Autoencoder(
        net[-1],
        hidden_layer_sizes=net[1:-1],
        activation="relu",
        code_activation="ReLU()",
        linear_path=False,
        batch_size=batch,
        learning_rate_init=rate,
        max_iter=epochs,
        early_stopping=False,
        scale=None,
        start="random",
        random_state=0,
        **options,
    )
    return model.fit(X).reconstruct


def whole(X, net, epochs):
    """A fit of at most so many epochs with the widths given and nothing else set."""
    return Autoencoder(net[-1], hidden_layer_sizes=net[1:-1], max_iter=epochs, random_state=0).fit(X).reconstruct


def default(X):
    Autoencoder(random_state=0).fit(X)


def linear(X, K):
    return {"exact": lambda: Autoencoder(K, hidden_layer_sizes=()).fit(X).reconstruct}


def encoders(net, X):
    plain = {"activation": "relu", "code_activation": "ReLU()", "linear_path": False, "early_stopping": False}
    model = Autoencoder(net[-1], hidden_layer_sizes=net[1:-1], max_iter=1, scale=None, start="random", **plain)
    return {"transform": model.fit(X[:2000]).transform}
