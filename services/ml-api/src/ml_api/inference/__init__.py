"""The Open Inference Protocol (KServe V2) over the models that are loaded."""
