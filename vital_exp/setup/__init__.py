"""The setup of a run, made once from its configuration: network, targets, references, and the parts of a step."""
