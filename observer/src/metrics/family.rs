//! What a metric family is: name, type, unit, labels, help. Type and number of labels are known to the
//! compiler, so a sample with a label too few does not build.

use std::marker::PhantomData;

/// The type of a family, as the exposition format names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Only ever goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by upper bound.
    Histogram,
}

impl Type {
    /// The word after `# TYPE name`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The unit of a family's values: a base unit, never with a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A number of things.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds; a time of day is in seconds since 1970.
    Seconds,
    /// Processor cores.
    Cores,
    /// Always 1: the labels are what it says.
    Info,
}

impl Unit {
    /// The unit's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "number",
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Cores => "cores",
            Self::Info => "always 1",
        }
    }
}

/// A type of family at compile time.
pub trait Kind {
    /// The same at run time.
    const TYPE: Type;
}

/// A type whose sample is one number.
pub trait Scalar: Kind {}

/// See [`Type::Counter`].
#[derive(Debug)]
pub enum Counter {}

/// See [`Type::Gauge`].
#[derive(Debug)]
pub enum Gauge {}

/// See [`Type::Histogram`].
#[derive(Debug)]
pub enum Histogram {}

impl Kind for Counter {
    const TYPE: Type = Type::Counter;
}
impl Kind for Gauge {
    const TYPE: Type = Type::Gauge;
}
impl Kind for Histogram {
    const TYPE: Type = Type::Histogram;
}
impl Scalar for Counter {}
impl Scalar for Gauge {}

/// A metric family of type `K` with `N` labels.
#[derive(Debug)]
pub struct Family<K, const N: usize> {
    /// The full name.
    pub name: &'static str,
    /// The names of the labels, in the order in which a sample gives their values.
    pub labels: [&'static str; N],
    /// The unit of the values.
    pub unit: Unit,
    /// One sentence or two: what it is, and where it comes from.
    pub help: &'static str,
    /// The type.
    pub kind: PhantomData<K>,
}

/// A family without its compile-time part: a row of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The full name.
    pub name: &'static str,
    /// The type.
    pub family_type: Type,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The unit of the values.
    pub unit: Unit,
    /// What it is.
    pub help: &'static str,
    /// The chapter of the documentation that it belongs to.
    pub chapter: &'static str,
}

/// Declares families as constants and `ALL`, the table of them.
macro_rules! catalogue {
    ($($chapter:literal { $(
        $ident:ident: $kind:ident, $unit:ident, $name:literal, $labels:expr, $help:literal;
    )* })*) => {
        $($(
            #[doc = $help]
            pub const $ident: Family<$kind, { $labels.len() }> =
                Family { name: $name, labels: $labels, unit: Unit::$unit, help: $help, kind: PhantomData };
        )*)*

        /// Every family that the agent can expose, by chapter.
        pub static ALL: &[Row] = &[$($(
            Row {
                name: $ident.name,
                family_type: <$kind as Kind>::TYPE,
                labels: &$ident.labels,
                unit: $ident.unit,
                help: $ident.help,
                chapter: $chapter,
            },
        )*)*];
    };
}
pub(super) use catalogue;
