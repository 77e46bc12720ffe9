"""What a job did, and what may be wrong with it."""
