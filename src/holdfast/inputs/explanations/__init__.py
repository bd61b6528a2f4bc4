"""Which factors a model uses, whether models agree on them, and how to hold a model to what is known of them."""

from holdfast.inputs.explanations.aligned import AlignedMLPClassifier, AlignedMLPRegressor
from holdfast.inputs.explanations.alignment import ImportanceAlignment, mutual_divergence, prior_from_ranks
from holdfast.inputs.explanations.consistency import ConsistencyReport, factor_consistency
from holdfast.inputs.explanations.importance import importance_distribution, reference_prior
from holdfast.inputs.explanations.shapley import ShapleyValues, exact_shapley, permutation_shapley

__all__ = [
    "AlignedMLPClassifier",
    "AlignedMLPRegressor",
    "ConsistencyReport",
    "ImportanceAlignment",
    "ShapleyValues",
    "exact_shapley",
    "factor_consistency",
    "importance_distribution",
    "mutual_divergence",
    "permutation_shapley",
    "prior_from_ranks",
    "reference_prior",
]
