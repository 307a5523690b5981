"""The conformance suite: what daskem takes for granted of a model, a family or an algorithm, as checks that say why.

``check_model(MyModel(), rows)`` tries a model and says in words what is wrong. Each property is a function of its own
in a table, so that a test can be parametrised over (case, property). A property whose `needs` a model does not offer is
passed over: optional capabilities are checked where they are claimed.
"""

from daskem.testing.algorithms import (
    ALGORITHM_PROPERTIES,
    AlgorithmTrial,
    CountingProblem,
    TwoCoins,
    check_algorithm,
    toy_problem,
)
from daskem.testing.families import FAMILY_PROPERTIES, check_family, family_model
from daskem.testing.models import MODEL_PROPERTIES, check_model
from daskem.testing.trial import ModelTrial, Property, model_trial

__all__ = [
    "ALGORITHM_PROPERTIES",
    "FAMILY_PROPERTIES",
    "MODEL_PROPERTIES",
    "AlgorithmTrial",
    "CountingProblem",
    "ModelTrial",
    "Property",
    "TwoCoins",
    "check_algorithm",
    "check_family",
    "check_model",
    "family_model",
    "model_trial",
    "toy_problem",
]
