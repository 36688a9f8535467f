"""The samples of one problem: G sequences in a row of the batch."""
