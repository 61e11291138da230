"""What the paper states, beside what can be counted and measured here: `python -m xception_hub.paper`."""
