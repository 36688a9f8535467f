"""Pure mathematics on arrays; imports nothing else of this package."""
