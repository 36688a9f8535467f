"""What a compiled program asks of hardware that need not be here."""
