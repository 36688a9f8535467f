"""Compares objectives on small families of problems, each with its question.

Problems, judgement and feedback of the families that come with the package are
arrays, so that rollouts, verdicts, teacher and updates of many steps are one
compiled program. Other families are training configs and run like these.
Everything from the sampler to the optimizer is the package's own code.
"""
