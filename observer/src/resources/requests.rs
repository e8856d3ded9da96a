//! What a container asked for: told by the orchestrator, or read back from what it made of it. Pure.

use super::{Facts, Limit, Usage};
use crate::{identity::Requests, sandbox::QosClass};

/// What the kubelet gives who asked for no CPU, or for less (`MinShares` of pkg/kubelet/cm/helpers_linux.go).
const LEAST_SHARES: u64 = 2;
/// The most that it gives (`MaxShares`, the same file).
const MOST_SHARES: u64 = 262_144;

/// The requests of a container: what the orchestrator tells of it, and where it tells nothing of one, what its cgroup
/// says. A container outside of a kubelet's cgroups (`qos` is `None`) has none there, nor has one of a pod that asked for
/// nothing.
///
/// Of memory the kubelet writes the request nowhere; only a `Guaranteed` pod's is known, because it is the limit. The
/// weight of cgroup v2 is no answer either: it stands for some 25 different requests.
pub(super) fn requests(told: Requests, qos: Option<QosClass>, facts: &Facts) -> Requests {
    told.or(match qos {
        Some(QosClass::Guaranteed) => {
            Requests { cpu_millis: of_quota(facts), memory_bytes: facts.limit.and_then(Limit::finite) }
        }
        Some(QosClass::Burstable) => Requests { cpu_millis: facts.cpu_shares.and_then(of_shares), memory_bytes: None },
        Some(QosClass::BestEffort) | None => Requests::default(),
    })
}

fn of_quota(facts: &Facts) -> Option<u64> {
    let cores = Usage::from(facts).quota?.cores?;
    // At least a thousandth, and far below 2^53 of them: the kernel allows 2^44 µs of a period of 1 ms.
    Some((cores * 1000.0).round() as u64)
}

/// Thousandths of a core that the kubelet made these shares of (`MilliCPUToShares`: milli * 1024 / 1000, rounded down).
fn of_shares(shares: u64) -> Option<u64> {
    let between = shares > LEAST_SHARES && shares < MOST_SHARES;
    let millis = between.then(|| (shares * 1000).div_ceil(1024))?;
    // Shares that somebody else wrote may be of no whole number of thousandths.
    (millis * 1024 / 1000 == shares).then_some(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(shares: u64) -> Facts {
        Facts { cpu_shares: Some(shares), limit: Some(Limit::Finite(1 << 20)), ..Facts::default() }
    }

    #[test]
    fn shares_lead_back_to_every_request() {
        for millis in 3..200_000 {
            assert_eq!(of_shares(millis * 1024 / 1000), Some(millis));
        }
        // No request gives 43 shares: 41m are 41, 42m are 43.008.
        for shares in [0, 1, 2, MOST_SHARES, u64::MAX] {
            assert_eq!(of_shares(shares), None, "{shares}");
        }
        let made_by_none = (3..1024).filter(|shares| of_shares(*shares).is_none()).count();
        assert_eq!(made_by_none, 24, "1,024 shares for 1,000 thousandths: so many are left over");
    }

    #[test]
    fn the_orchestrator_is_believed_and_the_cgroup_where_it_says_nothing() {
        let told = Requests { cpu_millis: None, memory_bytes: Some(5) };
        let of = |told, qos| requests(told, qos, &facts(256));
        assert_eq!(of(told, Some(QosClass::Burstable)), Requests { cpu_millis: Some(250), memory_bytes: Some(5) });
        assert_eq!(of(told, Some(QosClass::BestEffort)), told);
        assert_eq!(of(Requests::default(), None), Requests::default());
        // One that asked for nothing has the least.
        assert_eq!(requests(Requests::default(), Some(QosClass::Burstable), &facts(2)), Requests::default());
    }

    #[test]
    fn who_is_guaranteed_asked_for_his_limits() {
        let guaranteed = Facts { cpu_max: Some((Some(150_000), 100_000)), ..facts(1) };
        let asked = requests(Requests::default(), Some(QosClass::Guaranteed), &guaranteed);
        assert_eq!(asked, Requests { cpu_millis: Some(1500), memory_bytes: Some(1 << 20) });
    }
}
