"""What is compiled: arrays in, arrays out. Nothing here checks an argument, raises or chooses.

Every array is a stack of matrices, ``(outer, rows, row)``, whose values lie side by side in the last axis;
it carries its two other strides itself. Where a channel is a run of values it is ``(outer, C, inner)``, a row
a run; where channels lie side by side it is ``(outer, rows, C * inner)``.
"""
