"""Recognizers exported to StableHLO, SavedModel, LiteRT and ONNX."""
