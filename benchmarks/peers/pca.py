"""scikit-learn's PCA."""

from functools import partial

from sklearn.decomposition import PCA

PACKAGES = ("scikit-learn",)
CANNOT = {"fit": "linear"}


def linear(X, K):
    def fit(solver):
        pca = PCA(K, svd_solver=solver, random_state=0).fit(X)
        return lambda rows: pca.inverse_transform(pca.transform(rows))

    return {solver: partial(fit, solver) for solver in ("auto", "covariance_eigh", "full", "randomized")}


def encoders(net, X):
    return {"transform": PCA(net[-1], random_state=0).fit(X[:10_000]).transform}
