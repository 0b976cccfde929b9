"""What scikit-learn asks of an estimator besides its work, without scikit-learn: clones, tags, outputs, reprs."""

from __future__ import annotations

import copy
import sys
from inspect import signature
from typing import Any, Self

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

from daskmeans.errors import UsageError
from daskmeans.kmeans.names import check_input_features
from daskmeans.kmeans.params import Parameters
from daskmeans.storage.result import html_table

# What `transform` can return.
OUTPUTS = ("default", "pandas", "polars")


class Contract(Parameters):
    """The part of :class:`daskmeans.KMeans` that is the same for all estimators of scikit-learn.

    Attributes
    ----------
    cluster_centers_, inertia_, n_iter_, converged_, n_features_in_
        Of the fitted model; see there.
    """

    cluster_centers_: np.ndarray
    inertia_: float
    n_iter_: int
    converged_: bool
    n_features_in_: int
    _sklearn_output_config: dict[str, str]  # scikit-learn's clone and its pipelines look for this name

    def __sklearn_tags__(self) -> Any:
        from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin

        class Tagged(ClusterMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
            pass

        tags = Tagged().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __sklearn_clone__(self) -> Self:
        """Return an estimator with copies of the parameters; a fitted `init` stays fitted."""
        clone = type(self)(**copy.deepcopy(self.get_params(deep=False)))
        if hasattr(self, "_sklearn_output_config"):
            clone._sklearn_output_config = dict(self._sklearn_output_config)
        return clone

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "cluster_centers_")

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle, without lazy results: futures of the input must not travel with the model."""
        return {
            name: value
            for name, value in vars(self).items()
            if not (name.endswith("_") and dask.is_dask_collection(value))
        }

    def __repr__(self) -> str:
        """The parameters that differ from their defaults, arrays by their shapes."""
        defaults = {name: each.default for name, each in signature(type(self)).parameters.items()}
        changed = [f"{k}={_shorten(v)}" for k, v in self.get_params().items() if not _is_equal(v, defaults[k])]
        return f"{type(self).__name__}({', '.join(changed)})"

    def _repr_html_(self) -> str:
        """The parameters that differ from the defaults and, once fitted, the results; for notebooks."""
        facts: dict[str, Any] = {}
        if self.__sklearn_is_fitted__():
            shape = " × ".join(map(str, self.cluster_centers_.shape))
            facts = {"centroids": shape, "inertia": f"{self.inertia_:,.6g}", "updates": self.n_iter_}
            facts["converged"] = "yes" if self.converged_ else "no"
        return html_table(repr(self), facts)

    def check_fitted(self) -> None:
        """Raise scikit-learn's NotFittedError, or UsageError where there is no scikit-learn, if there is no model."""
        if not self.__sklearn_is_fitted__():
            try:
                from sklearn.exceptions import NotFittedError
            except ImportError:
                NotFittedError = UsageError
            raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet. Call fit, or KMeans.load.")

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return names of the columns that :meth:`transform` returns: kmeans0, kmeans1 and so on.

        Parameters
        ----------
        input_features : sequence of str, optional
            Names of the columns of the input, which are only compared with those of the fit.

        Raises
        ------
        UsageError
            `input_features` are other columns than those of the fit.
        """
        self.check_fitted()
        check_input_features(input_features, getattr(self, "feature_names_in_", None), self.n_features_in_)
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(len(self.cluster_centers_))], dtype=object)

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what :meth:`transform` and :meth:`fit_transform` return.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, optional
            "default" is an array. "pandas" is a dataframe with the index of the input; for dask input it is a dask
            dataframe. None changes nothing.

        Examples
        --------
        >>> X = np.float32([[3, 0], [0, 4]])
        >>> from daskmeans import KMeans
        >>> KMeans(2, init=X, normalize=False).set_output(transform="pandas").fit_transform(X)
           kmeans0  kmeans1
        0      0.0      5.0
        1      5.0      0.0
        """
        if transform is not None:
            _check_output(transform)
            self._sklearn_output_config = {"transform": transform}
        return self

    def _wrap_output(self, found: Any, X: Any) -> Any:
        """Return the distances `found` of the rows of `X` as what was chosen, here or for all of scikit-learn."""
        sklearn: Any = sys.modules.get("sklearn")  # whoever has chosen there has imported it
        everywhere = sklearn.get_config()["transform_output"] if sklearn else "default"
        kind = getattr(self, "_sklearn_output_config", {}).get("transform", everywhere)
        _check_output(kind)
        if kind == "default":
            return found
        columns = self.get_feature_names_out().tolist()
        if isinstance(found, da.Array):
            return _to_lazy_frame(found, X, columns, kind)
        if kind == "pandas":
            index = X.index if isinstance(X, (pd.DataFrame, pd.Series)) else None
            return pd.DataFrame(found, index, columns)
        try:
            import polars
        except ImportError:
            raise UsageError("polars is not installed", where="set_output", remedy="pip install polars") from None
        return polars.DataFrame(found, schema=columns, orient="row")


def _check_output(kind: Any) -> None:
    if kind not in OUTPUTS:
        raise UsageError(f"transform={kind!r}", where="set_output", expected=", ".join(map(repr, OUTPUTS)))


def _to_lazy_frame(found: da.Array, X: Any, columns: list[str], kind: str) -> dd.DataFrame:
    if kind != "pandas":
        raise UsageError(
            f"{kind} has no lazy dataframes that dask could return",
            where="set_output",
            remedy="use set_output(transform='pandas')",
        )
    return dd.from_dask_array(found, columns, X.index if isinstance(X, (dd.DataFrame, dd.Series)) else None)


def _is_equal(value: Any, default: Any) -> bool:
    """Whether a parameter has its default, which is a number, a word, a flag or None."""
    return value is default or (isinstance(value, (str, int, float, np.generic)) and bool(value == default))


def _shorten(value: Any) -> str:
    """Return the repr of a parameter; arrays, frames and lists are only described.

    Examples
    --------
    >>> _shorten(np.eye(3)), _shorten([[1.0, 0.0]]), _shorten(0.5)
    ('<ndarray of shape (3, 3)>', '<list of 1>', '0.5')
    """
    if getattr(value, "shape", ()):
        return f"<{type(value).__name__} of shape {tuple(value.shape)}>"
    return f"<{type(value).__name__} of {len(value)}>" if isinstance(value, (list, tuple)) else repr(value)
