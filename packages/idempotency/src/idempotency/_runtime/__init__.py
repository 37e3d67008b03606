"""What the package finds around it when it is imported: optional libraries, the chosen implementation, forks."""
