"""From a model to a posterior: sites, the rules that make them, objectives, and the one optimisation loop."""
