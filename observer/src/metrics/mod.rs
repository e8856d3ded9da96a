//! The catalogue of metric families and what turns readings into them.
