"""holdfast: does a machine-learning result still hold when something is perturbed?"""

__version__ = "0.1.0"
