"""POST /predict: its wire, its fingerprint, and the service that answers it."""
