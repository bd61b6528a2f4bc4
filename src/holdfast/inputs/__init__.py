"""Methods for the example at test time: attacks, bounds, smoothing, corruption, detection, calibration."""
