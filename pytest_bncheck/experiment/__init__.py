"""The experiment: train, measure, diagnose, put back. Knows neither pytest nor a framework."""
