"""Tasks of lm-evaluation-harness, through its own task manager, model class and evaluation."""
