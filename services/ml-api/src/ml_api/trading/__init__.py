"""Trading decisions, pure: indicators, rules, sizes and reasons; see DECISIONS.md."""
