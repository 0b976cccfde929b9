"""Feature names of frames of numbers: a model refuses frames whose columns differ or are in another order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from daskmeans.errors import UsageError
from daskmeans.kmeans.rows.inputs import is_frame_of_numbers

# Names that a message lists, at most.
LISTED = 5


def feature_names(X: Any, column: str | None) -> np.ndarray | None:
    """Return the column names of a frame of numbers if all are strings; None for any other input.

    Examples
    --------
    >>> import pandas as pd
    >>> feature_names(pd.DataFrame({"a": [1.0], "b": [2.0]}), None)
    array(['a', 'b'], dtype=object)
    """
    if not is_frame_of_numbers(X, column) or not all(isinstance(name, str) for name in X.columns):
        return None
    return np.array(X.columns, dtype=object)


def check_names(names: np.ndarray | None, fitted: np.ndarray | None) -> None:
    """Raise UsageError if a model was fitted on columns other than `names`, or on these in another order.

    If only one of the two has names, it warns, as scikit-learn does.
    """
    if names is None and fitted is not None:
        _warn_user("X does not have valid feature names, but KMeans was fitted with feature names")
    if names is not None and fitted is None:
        _warn_user("X has feature names, but KMeans was fitted without feature names")
    if names is None or fitted is None or np.array_equal(names, fitted):
        return
    unseen, missing = sorted(set(names) - set(fitted)), sorted(set(fitted) - set(names))
    parts = [
        "The feature names should match those that were passed during fit.",
        *_list_names("Feature names unseen at fit time:", unseen),
        *_list_names("Feature names seen at fit time, yet now missing:", missing),
    ]
    if not unseen and not missing:
        parts.append("Feature names must be in the same order as they were in fit.")
    raise UsageError(
        "\n".join(parts),
        remedy="use the model that was fitted on such columns, or fit a new one"
        if missing
        else "pass X[km.feature_names_in_], the columns of the fit in their order",
    )


def check_input_features(names: Any, fitted: np.ndarray | None, n_features: int) -> None:
    """Raise UsageError if `names`, unless None, are not those of the columns of a fit on `n_features` of them.

    `fitted` is None if these had no names.
    """
    if names is None:
        return
    if fitted is not None and not np.array_equal(names, fitted):
        raise UsageError("input_features is not equal to feature_names_in_", expected="the columns of the fit")
    if len(names) != n_features:
        raise UsageError(
            f"input_features should have length equal to number of features ({n_features}), got {len(names)}"
        )


def _list_names(title: str, names: Sequence[str]) -> list[str]:
    more = ["- ..."] if len(names) > LISTED else []
    return [title, *(f"- {name}" for name in names[:LISTED]), *more] if names else []


def _warn_user(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=5)
