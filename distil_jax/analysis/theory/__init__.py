"""States the method's claims as small functions in exact arithmetic.

The problems are tables in NumPy float64: bandits, finite-horizon MDPs, and
trees of completions. Leading dimensions are instances, so that a claim is
checked on thousands of them at once; probabilities are on the last axis. The
notation is that of "Reinforcement Learning from Rich Feedback with
Distributional DAgger" (arXiv:2606.05152).
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
