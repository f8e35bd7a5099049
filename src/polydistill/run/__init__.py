"""A whole run from a configuration: built, trained, measured, and a folder that says what happened."""
