"""One room per subcommand beside train and evaluate."""
