"""The server below the application: uvicorn with this service's limits, in one process or several."""
