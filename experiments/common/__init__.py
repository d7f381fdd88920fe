"""What experiments share: options, conditions, training, tables and plots."""
