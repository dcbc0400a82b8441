//! Programs of small graphs, printed.
