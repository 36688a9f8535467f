"""Objectives compared on small families of problems, made for a question each.

Problems, judgement and feedback of the families that come with the package are
arrays, so that rollout, verdict, teacher and update of many steps are one
compiled program; others are training configs and run as these do. Everything
from the rollout to the optimiser is the package's own corridor.
"""
