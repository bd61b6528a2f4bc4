"""Methods for the objective: reinforcement learning, bandits, preferences."""
