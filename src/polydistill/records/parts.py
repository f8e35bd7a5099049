"""Where the time of a run's steps goes: the names of the parts, in `seconds` of records and summary."""

PRODUCTS, OBJECTIVE, REST, PROBE = "products", "objective", "rest", "probe"
MODELS = ("teachers", "student", PRODUCTS, "writing")
"""The models' own: their layers, the products with their heads and of the gradients, and what a student writes."""
OTHERS = (OBJECTIVE, REST, PROBE)
"""The objective without those products; optimizer, moving, logging and the like; looks at the probe batch."""
