"""Rows of the tables in which the numbers per channel travel.

One array with a row a quantity: an array costs a call from Python 0.1 us, a row costs nothing.
"""

# what normalizing needs: the first five rows of any table of statistics
MEAN = 0
MEAN_LOW = 1  # the mean is MEAN + MEAN_LOW
VAR = 2
GAMMA = 3
BETA = 4
NORMALIZE_ROWS = 5

# what a batch leaves besides
M2 = 5
INV_STD = 6
STATISTICS_ROWS = 7

# what the gradient with respect to the input needs
GRAD_MEAN = 0
GRAD_INV_STD = 1
GRAD_GAMMA = 2
SUM_GRAD = 3
SUM_GRAD_DEVIATION = 4
GRADIENT_ROWS = 5
