"""The main job, small: three specialists, one student, weights at three scales, on text found on every machine."""
