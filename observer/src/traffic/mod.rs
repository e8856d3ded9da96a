//! Edge counters: read from the maps, attributed, summed into series.
