"""How many images the held-out program has in tests."""

from benchmarks.protocol.subject import Sizes

SIZES = Sizes(train=96, validation=16, calibration=48, test=40)
