"""A simulated GPU, `--gpu sim:h100`: known physics under a virtual clock, to try the whole chain without a GPU.

`chip` holds the hidden parameters, `kernels` the time and work of an operator, `gpu` the timeline with its power,
temperature, governor and sensors, `faults` what can be made to go wrong, `instruments` the seams to the profiler.
Nothing here is taken from the predictor but the names of operators and the least work of a shape, so what the
calibration recovers it has found.
"""
