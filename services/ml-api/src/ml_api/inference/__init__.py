"""The Open Inference Protocol (KServe V2) for the loaded models."""
