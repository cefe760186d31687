"""Rows of the tables in which the float64 numbers per channel travel.

One array with a row a quantity: an array costs a call from Python 0.1 us, a row costs nothing.
"""

# what inference needs: the rows of a layer's own table, in the dtype of its parameters, are these too
MEAN = 0
VAR = 1
GAMMA = 2
BETA = 3
LAYER_ROWS = 4

# what a batch leaves besides
MEAN_LOW = 4  # the mean is MEAN + MEAN_LOW
PAIR_ROWS = 5
M2 = 5
INV_STD = 6
STATISTICS_ROWS = 7

# coefficients of inference, in the dtype that is computed with
CENTER = 0
SCALE = 1
SHIFT = 2

# coefficients of a backward, six of grad_x, and what its sums say besides
OF_GAMMA = 6
OF_BETA = 7
GRADIENT_ROWS = 8

# of parts of the data: what deviations are taken from, their sum, and m2
REFERENCE = 0
SUM = 1
SQUARES = 2
COUNT = 3  # where values are missing

# the sums of a backward
SUM_GRAD = 0
SUM_PRODUCT = 1
