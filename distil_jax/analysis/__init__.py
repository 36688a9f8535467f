"""Looks at runs beside each other and on paper."""
