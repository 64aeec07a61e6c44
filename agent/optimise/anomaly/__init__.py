"""Anomaly detection from pictures of sound parts alone: features of a frozen backbone, and a memory of them.

A place of a picture is compared with the nearest of some thousand places of sound parts. The comparison becomes
part of the `.tflite`, so that a board runs one file and needs nothing else. No training, and no PyTorch.
Source: Roth et al., Towards total recall in industrial anomaly detection (PatchCore), CVPR 2022.
"""
