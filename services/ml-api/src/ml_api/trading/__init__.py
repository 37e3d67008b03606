"""Trading decisions: indicators, rules, order sizes and reasons, without I/O; see DECISIONS.md."""
