"""Classifiers of feature vectors from before neural networks, as scikit-learn pipelines; saved by skops, not pickle."""

from pathlib import Path
from typing import Literal

from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from data_pipelines.core.errors import DataError

ClassifierName = Literal["svm", "logistic", "knn", "forest", "tree"]

_NEIGHBOURS, _TREES, _MOST_ITERATIONS = 3, 300, 1000


def make_classifier(name: ClassifierName, seed: int = 0) -> Pipeline:
    """Builds an untrained classifier of standardised features.

    "svm" has radial basis functions and a penalty C of 10, "knn" the 3 nearest neighbours, "forest" 300 trees; other
    settings are scikit-learn's. The SVM gives classes, the others probabilities too.
    """
    models: dict[str, BaseEstimator] = {
        "svm": SVC(C=10.0, random_state=seed),
        "logistic": LogisticRegression(max_iter=_MOST_ITERATIONS),
        "knn": KNeighborsClassifier(_NEIGHBOURS),
        "forest": RandomForestClassifier(_TREES, random_state=seed, n_jobs=1),
        "tree": DecisionTreeClassifier(random_state=seed),
    }
    return make_pipeline(StandardScaler(), models[name])


def save_classifier(classifier: Pipeline, path: Path) -> None:
    """Writes a trained classifier to a file of skops."""
    import skops.io

    skops.io.dump(classifier, path)


def load_classifier(path: Path) -> Pipeline:
    """Reads a classifier that `save_classifier` wrote.

    A file may name types that skops does not know to be safe; only those of scikit-learn's own trees and distances,
    which such classifiers contain, are trusted.

    Raises:
      DataError: the file cannot be read, or names other types.
    """
    import skops.io

    try:
        unknown = skops.io.get_untrusted_types(file=path)
        if foreign := [name for name in unknown if not name.startswith("sklearn.")]:
            raise DataError(f"{path}: holds {', '.join(foreign)}, which a classifier of this project never does")
        classifier = skops.io.load(path, trusted=unknown)
    except DataError:
        raise
    except Exception as error:  # skops raises errors of zipfile, json and many others
        raise DataError(f"{path}: is no classifier saved by jax-speechlm baseline ({error})") from error
    if not isinstance(classifier, Pipeline):
        raise DataError(f"{path}: holds a {type(classifier).__name__}, not a classifier of jax-speechlm baseline")
    return classifier
