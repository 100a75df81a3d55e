"""Numbers from arrays: accuracy, calibration, feature similarity, paired tests, linear probe."""
