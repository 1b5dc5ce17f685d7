"""`retell demo`: scikit-learn's digits, an autoencoder, and PCA at the same K as the yardstick."""

from __future__ import annotations

import time
from pathlib import Path

from retell.exits import USAGE, Failure, blame, check_output

__all__ = ["run"]

K = 8
N_FIT = 1500  # the last 297 rows were written by other people


def run(folder: Path, *, quiet: bool = False) -> str:
    """Fit the digits and write ``model``, ``reconstructions.png`` and ``loss.png`` into a folder.

    Parameters
    ----------
    folder : Path
        Created if missing; what an earlier run wrote there is replaced.
    quiet : bool, default=False
        Say nothing while it runs.

    Returns
    -------
    str
        The summary.
    """
    check_output(folder, force=True)
    if folder.exists() and not folder.is_dir():
        raise Failure(USAGE, f"{folder} is a file: choose another name for the demo's folder")
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    from retell.estimator import Autoencoder
    from retell.metrics import explained_variance
    from retell.report.charts import loss_curve, reconstructions
    from retell.report.progress import watch
    from retell.report.summary import aligned, network, share

    with blame(USAGE):
        folder.mkdir(exist_ok=True)
    rows, digits = load_digits(return_X_y=True)
    train, test = rows[:N_FIT], rows[N_FIT:]
    start = time.monotonic()
    model = Autoencoder(K, random_state=0)
    settings, parts = model._settings()
    training = model._begin(settings, parts, train, None)
    watch(training, quiet=quiet)
    model._take(training, None)
    seconds = time.monotonic() - start
    pca = PCA(K).fit(train)
    ours = explained_variance(test, model.reconstruct(test))
    theirs = explained_variance(test, pca.inverse_transform(pca.transform(test)))
    model.save(folder / "model")
    shown = test[[list(digits[N_FIT:]).index(digit) for digit in range(10)]]
    reconstructions(model, shown, (8, 8), folder / "reconstructions.png", pca=pca)
    loss_curve(model, folder / "loss.png")
    return aligned(
        {
            "digits": f"{len(train):,} images to fit, {len(test)} held out, {rows.shape[1]} pixels each",
            "code": f"K = {K} units",
            "network": network(model),
            "explained": f"{share(ours)} of the variance of the held-out images",
            "PCA, K = 8": f"{share(theirs)}",
            "seconds": f"{seconds:.1f}, {model.n_iter_} epochs",
            "model": f"{folder / 'model'}",
            "pictures": f"{folder / 'reconstructions.png'}  {folder / 'loss.png'}",
        }
    )
