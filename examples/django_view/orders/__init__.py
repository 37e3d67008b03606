"""The one application of the project: orders that are placed once."""
