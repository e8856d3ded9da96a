//! What a container asked the scheduler for, and how the Kubernetes API writes numbers. Pure.

use std::collections::BTreeMap;

/// What a container asked for; `None` for what it did not ask for, or what nobody tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Thousandths of a core, the smallest part that Kubernetes gives.
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

/// What a container may use at most, in the same units: `resources.limits`.
pub type Limits = Requests;

impl Requests {
    /// From `resources.requests` or `resources.limits` of a container (`ResourceRequirements` of the Kubernetes API). What
    /// is no quantity, and 0, which asks for nothing and limits nothing, is left out.
    #[must_use]
    pub fn from_quantities(quantities: &BTreeMap<String, String>) -> Self {
        let told = |name: &str, unit| quantities.get(name).and_then(|text| quantity(text, unit)).filter(|n| *n > 0);
        Self { cpu_millis: told("cpu", 1000), memory_bytes: told("memory", 1) }
    }

    /// These, and for each that is missing the other's.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.or(other.cpu_millis),
            memory_bytes: self.memory_bytes.or(other.memory_bytes),
        }
    }

    /// The CPU in cores.
    #[must_use]
    pub fn cores(&self) -> Option<f64> {
        // No machine has 2^53 thousandths of a core.
        self.cpu_millis.map(|millis| millis as f64 / 1000.0)
    }
}

/// A quantity in `1 / unit`, rounded up as Kubernetes does: `[digits][.digits][suffix]`, where the suffix is one of
/// n, u, m, k, M, G, T, P, E, of Ki to Ei, or a power of ten (k8s.io/apimachinery `pkg/api/resource/quantity.go`). `None`
/// for anything else, for negative ones, and for what 64 bits do not hold.
#[must_use]
pub fn quantity(text: &str, unit: u64) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (times, by) = scale(suffix)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let above = digits.checked_mul(times)?.checked_mul(u128::from(unit))?;
    let below = by.checked_mul(10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    u64::try_from(above.div_ceil(below)).ok()
}

/// What a suffix multiplies by and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let decimal = |power: i32| {
        let factor = 10u128.checked_pow(power.unsigned_abs())?;
        Some(if power < 0 { (1, factor) } else { (factor, 1) })
    };
    let binary = |steps: u32| Some((1u128 << (10 * steps), 1));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        power => decimal(power.strip_prefix(['e', 'E'])?.parse().ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_kubernetes_reads_them() {
        for (text, millis) in [
            ("100m", 100),
            ("0.5", 500),
            (".5", 500),
            ("2", 2000),
            ("2.", 2000),
            ("1.5", 1500),
            ("1u", 1),
            ("100001u", 101),
            ("1n", 1),
            ("0", 0),
            ("1e1", 10_000),
            ("5E-1", 500),
        ] {
            assert_eq!(quantity(text, 1000), Some(millis), "{text}");
        }
        for (text, bytes) in [
            ("128Mi", 128 << 20),
            ("1Gi", 1 << 30),
            ("1.5Ki", 1536),
            ("128M", 128_000_000),
            ("1e9", 1_000_000_000),
            ("123", 123),
            ("500m", 1),
            ("15Ei", 15 << 60),
        ] {
            assert_eq!(quantity(text, 1), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        for text in [
            "",
            ".",
            "m",
            "-1",
            "+1",
            "1x",
            "1.2.3",
            "1 Gi",
            "1KI",
            "e3",
            "16Ei",
            "1e99",
            "1e",
            "1e-999999999999",
            "\u{661}",
        ] {
            assert_eq!(quantity(text, 1), None, "{text}");
        }
        assert_eq!(quantity(&"9".repeat(1000), 1), None);
        assert_eq!(quantity(&format!("0.{}", "1".repeat(1000)), 1), None);
    }

    #[test]
    fn nothing_asked_for_is_nothing() {
        let of = |pairs: &[(&str, &str)]| {
            Requests::from_quantities(&pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect())
        };
        assert_eq!(of(&[("cpu", "0"), ("memory", "much"), ("nvidia.com/gpu", "1")]), Requests::default());
        let some = of(&[("cpu", "250m"), ("memory", "64Mi")]);
        assert_eq!((some.cores(), some.memory_bytes), (Some(0.25), Some(64 << 20)));
        let less = Requests { cpu_millis: Some(1), memory_bytes: None };
        assert_eq!(less.or(some), Requests { cpu_millis: Some(1), ..some });
    }
}
