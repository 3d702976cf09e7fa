"""From a configuration to objects, once: network, targets, references, and the parts of a step."""
