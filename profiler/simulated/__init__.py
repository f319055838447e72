"""A simulated GPU, `--gpu sim:h100`: physics of its own under a virtual clock, to try the whole chain without a GPU.

`chip` holds the hidden parameters, `kernels` and `tiles` the time and work of an operator, `electrics` what it draws,
`governor` which clock it gets, `noise` how readings stray, `gpu` the timeline with heat and sensors, `faults` what can
be made to go wrong, `state` the driver's settings, `instruments` the seams to the profiler.

None of its equations are the predictor's: each is from the literature named beside it, where that says something else
than `model` does. What it shares with the predictor are the names of operators, their least work and the GPU's data
sheet. So what a calibration of its profile predicts can be wrong, as it can be of a real GPU, and how wrong is what
`bench/simulated_gpu.py` prints.
"""
