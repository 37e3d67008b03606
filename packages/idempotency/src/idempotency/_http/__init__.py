"""What every HTTP framework has in common: a keyed request, and the record of its answer. No I/O."""
