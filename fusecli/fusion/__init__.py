"""What a fusion is, its weights, and its arithmetic."""
