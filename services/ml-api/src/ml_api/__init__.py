"""The service: `POST /predict` over a verified model, safe to retry. `ml_api.app.create_app` builds it."""
