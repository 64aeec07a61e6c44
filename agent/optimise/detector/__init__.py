"""Training of detectors: pictures with boxes in, a float `.tflite` that the decoder `nanodet` reads out."""
