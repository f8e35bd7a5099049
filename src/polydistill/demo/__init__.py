"""The main job, small: three specialists, one student, weights at three scales, on text found on every machine."""

from polydistill.demo.run import main, run_demo

__all__ = ["main", "run_demo"]
