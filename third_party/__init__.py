"""Networks of others, rebuilt clean-room so that their public checkpoints load."""
