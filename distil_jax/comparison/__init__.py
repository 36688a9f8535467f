"""Objectives compared on small families of problems, made for a question each.

Problems, judgement and feedback are arrays here, so that rollout, verdict,
teacher and update of many steps are one compiled program. Everything from the
rollout to the optimiser is the package's own corridor.
"""
