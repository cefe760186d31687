"""Rows of the tables in which the float64 numbers per channel travel.

One array with a row a quantity: an array costs a call from Python 0.1 us, a row costs nothing.
"""

# what inference needs: the rows of a layer's own table, in the dtype of its parameters, are these too
MEAN = 0
VAR = 1
GAMMA = 2
BETA = 3
SLOPE = 4  # of the activation, below 0
LAYER_ROWS = 5

# what a batch leaves besides
MEAN_LOW = 5  # the mean is MEAN + MEAN_LOW
PAIR_ROWS = 6
M2 = 6
INV_STD = 7
STATISTICS_ROWS = 8
# ... and of a data set: how many values each feature has, and zeros
COUNTS = 8
ZEROS = 9
FEATURES_ROWS = 10

# coefficients of inference, in the dtype that is computed with
CENTER = 0
SCALE = 1
SHIFT = 2
FORM_SLOPE = 3
FORM_ROWS = 4

# coefficients of a backward, six of grad_x, and what its sums say besides
OF_GAMMA = 6
OF_BETA = 7
OF_SLOPE = 8
GRADIENT_ROWS = 9

# of parts of the data: what deviations are taken from, their sum, and m2
REFERENCE = 0
SUM = 1
SQUARES = 2
COUNT = 3  # of values, or their weight

# the sums of a backward
SUM_GRAD = 0
SUM_PRODUCT = 1
SUM_SLOPE = 2  # of a learned slope
