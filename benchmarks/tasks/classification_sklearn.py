"""Laplace's approximation with the logit link against scikit-learn's GaussianProcessClassifier."""

from __future__ import annotations

from typing import Any

from benchmarks.registry import Setting, Task
from benchmarks.tasks.classification_peers import measure, metrics

OBJECTIVE = "log evidence"


def run_gpx(setting: Setting, priors: str | None) -> dict[str, float]:
    """gpx with rules.Laplace()."""
    import gpx

    def fit(X, y):
        likelihood = gpx.likelihoods.Bernoulli(link="logit")
        gp = gpx.GP(gpx.kernels.Matern(nu=2.5), likelihood, mean="zero", rule=gpx.rules.Laplace())
        return gp.fit(X, y, priors=priors)

    return measure(setting, OBJECTIVE, fit, lambda gp: gp.log_evidence())


def run_sklearn(setting: Setting) -> dict[str, float]:
    """scikit-learn with its defaults: one L-BFGS-B run from unit hyperparameters."""
    import numpy as np
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    def fit(X, y):
        return GaussianProcessClassifier(ConstantKernel() * Matern(nu=2.5), random_state=setting.seed).fit(X, y)

    def score(model: Any, fold):
        probabilities = model.predict_proba(fold.X_test)
        return -float(np.log(probabilities[np.arange(len(fold.y_test)), fold.y_test.astype(int)]).mean())

    return measure(setting, OBJECTIVE, fit, lambda model: model.log_marginal_likelihood_value_, score)


TASK = Task(
    name="classification-sklearn",
    description="Laplace's approximation, logit, isotropic Matern-5/2, parameters learned; means over 2 folds.",
    metrics=metrics(OBJECTIVE),
    models={
        "gpx-laplace": lambda setting: run_gpx(setting, priors=None),
        "sklearn": run_sklearn,
        "gpx-laplace-weak": lambda setting: run_gpx(setting, priors="weak"),
    },
    reference="gpx-laplace",
)
