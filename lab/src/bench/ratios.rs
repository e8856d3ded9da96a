//! Medians and quartiles of paired ratios, and how sure a median is. Pure.

/// A median and the quartiles around it, and between which values the median of ever more measurements would be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// A quarter of the values is below.
    pub low: f64,
    /// The middle.
    pub median: f64,
    /// A quarter of the values is above.
    pub high: f64,
    /// The median that the values are a sample of is here with a probability of 95 %. Widely apart with few values or loud ones.
    pub sure: (f64, f64),
}

/// Whether a budget is met: what is measured may be at least so much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As sure as [`Spread::sure`] is.
    Met,
    /// As sure.
    Missed,
    /// The median says met, and so few or loud values cannot tell it from missed.
    MetIfAnything,
    /// The other way round.
    MissedIfAnything,
}

impl Verdict {
    /// The median is within the budget, however sure that is.
    pub const fn is_good(self) -> bool {
        matches!(self, Self::Met | Self::MetIfAnything)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::MetIfAnything => "open, rather met",
            Self::MissedIfAnything => "open, rather MISSED",
        })
    }
}

impl Spread {
    /// Of values in any order; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let at = |part| quantile(&values, part);
        // How many values are below the median is binomial, whatever their distribution: n / 2, and 1.96 standard deviations of
        // sqrt(n) / 2 each to both sides (Conover, Practical Nonparametric Statistics, 3.2).
        let apart = 0.98 / (values.len() as f64).sqrt();
        let sure = (at((0.5 - apart).max(0.0))?, at((0.5 + apart).min(1.0))?);
        Some(Self { low: at(0.25)?, median: at(0.5)?, high: at(0.75)?, sure })
    }

    /// Against a budget that it may not be below.
    pub fn against(&self, budget: f64) -> Verdict {
        let (lowest, highest) = self.sure;
        match self.median >= budget {
            true if lowest >= budget => Verdict::Met,
            true => Verdict::MetIfAnything,
            false if highest < budget => Verdict::Missed,
            false => Verdict::MissedIfAnything,
        }
    }

    /// Of the ratios of two measurements, round by round: what both rounds suffered alike is gone from it.
    pub fn of_ratios(of: &[f64], to: &[f64]) -> Option<Self> {
        Self::of(of.iter().zip(to).filter(|(_, to)| **to > 0.0).map(|(of, to)| of / to).collect())
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ({:.3}–{:.3})", self.median, self.low, self.high)
    }
}

/// Between the two values that are nearest.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = part * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_surer_the_more_values_there_are() {
        let of =
            |count: i32| Spread::of((0..count).map(|value| f64::from(value) / f64::from(count - 1)).collect()).unwrap();
        // 40 of 100: the 40th and the 61st of them, by tables of the binomial distribution.
        let (low, high) = of(101).sure;
        assert!((0.395..0.41).contains(&low) && (0.59..0.605).contains(&high), "{low} {high}");
        let (low, high) = of(10_001).sure;
        assert!((0.490..0.491).contains(&low) && (0.509..0.51).contains(&high), "{low} {high}");
        assert_eq!(of(2).sure, (0.0, 1.0));
        assert_eq!(of(101).against(0.3), Verdict::Met);
        assert_eq!(of(101).against(0.45), Verdict::MetIfAnything);
        assert_eq!(of(101).against(0.55), Verdict::MissedIfAnything);
        assert_eq!(of(101).against(0.7), Verdict::Missed);
        assert!(of(101).against(0.45).is_good() && !of(101).against(0.55).is_good());
    }

    #[test]
    fn medians_and_quartiles() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0, 5.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (2.0, 3.0, 4.0));
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Spread::of_ratios(&[9.0, 10.0, 1.0], &[10.0, 10.0, 0.0]).unwrap().median, 0.95);
    }
}
