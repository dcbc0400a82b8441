//! Quantizers: 128 x 128 tiles through shared memory.
