"""POST /predict: request and response formats, fingerprint, and the service that answers."""
