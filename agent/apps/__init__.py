"""Applications: pure functions and state machines over what the models find."""
