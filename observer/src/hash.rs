//! Hash tables of the scrape's way: thousands of lookups by ten strings each. The standard hasher takes a fifth of such a
//! scrape. This one has a random seed for each process too, so nobody can choose names that collide.

use std::collections;

/// Hashes.
pub(crate) type FastHasher = foldhash::quality::RandomState;
/// A map.
pub(crate) type FastMap<K, V> = collections::HashMap<K, V, FastHasher>;
/// A set.
pub(crate) type FastSet<T> = collections::HashSet<T, FastHasher>;
